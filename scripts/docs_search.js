// Search on pages that are opened from a file, for which browsers start no worker: its script runs in a hidden frame instead.
// Material's offline plugin has a shim from elsewhere for this; the site is to fetch nothing.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget { // the second name tells Material's script where it is
    constructor(url) {
      super();
      this.frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {hidden: true}));
      const inside = this.inside = this.frame.contentWindow, page = inside.document;
      page.open();
      page.write("<!doctype html><body></body>");
      page.close();
      const load = address => new Promise((loaded, failed) => {
        page.body.append(Object.assign(page.createElement("script"), {src: address, onload: loaded, onerror: failed}));
      });
      inside.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", {data})));
      inside.importScripts = (...addresses) => addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve());
      this.ready = load(url);
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", {data: structuredClone(data)})));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
