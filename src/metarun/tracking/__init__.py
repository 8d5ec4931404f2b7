"""What is told while a run goes on: TensorBoard, metrics.jsonl, the console."""
