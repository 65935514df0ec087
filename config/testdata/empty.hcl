# error-at-file: there is no listener: nothing would be proxied The least configuration is one listener and one upstream:
