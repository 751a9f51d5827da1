// Perfetto's trace processor as its own user interface has it (engine_bundle.js and WebAssembly), run by node. It
// has no browser around it: a worker's few names are made here. TraceProcessorRpcStream bytes from stdin go to it,
// its answers to stdout. The argument is the folder in which it lies.
import { readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { createContext, runInContext } from "node:vm";

const file = (name) => readFileSync(join(process.argv[2], basename(name)));

class XMLHttpRequest {
  open(method, url) {
    this.url = url;
  }
  send() {
    this.status = 200;
    const bytes = file(this.url);
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  }
}

const answers = [];
const port = { postMessage: (bytes) => answers.push(Buffer.from(bytes)) };
const say = (...words) => process.stderr.write(`${words.join(" ")}\n`);
const worker = {
  console: { log: say, warn: say, error: say },
  location: { href: "http://localhost/engine_bundle.js" },
  importScripts() {},
  WorkerGlobalScope: class {},
  performance, setTimeout, clearTimeout, TextDecoder, TextEncoder, URL, XMLHttpRequest,
};
worker.self = createContext(worker);
// The bundle looks at the class of a message, so the bytes have to be of the worker's own class
runInContext(file("engine_bundle.js").toString(), worker);
worker.onmessage({ data: port });
const request = readFileSync(0);
const Bytes = runInContext("Uint8Array", worker);
// Before its WebAssembly runs it would drop a request
await new Promise((done) => setTimeout(done, 0));
port.onmessage({ data: new Bytes(request) });
writeFileSync(1, Buffer.concat(answers));
