"""Many runs: launched, watched, gone on with."""
