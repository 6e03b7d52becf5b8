// BinderHub's own client, run as jupyterhub-fancy-profiles runs it: every event is printed as a line of JSON, and the
// first `ready` or `failed` closes the stream. Arguments: the folder of the packages, the spec, the endpoint's URL, the
// client's options as JSON, and the number of events after which the viewer leaves (0: never).
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, spec, endpoint, options, leaveAfter] = process.argv.slice(2);

// All of a browser that the client and its fetch-event-source touch.
globalThis.window = globalThis;
globalThis.document = { cookie: "_xsrf=from-the-cookie", hidden: false, addEventListener() {}, removeEventListener() {} };
console.log = console.error;
process.on("unhandledRejection", console.error); // a browser goes on, too

const path = createRequire(`${packages}/`).resolve("@jupyterhub/binderhub-client/client.js");
const { BinderRepository } = await import(pathToFileURL(path));
const repository = new BinderRepository(spec, new URL(endpoint), JSON.parse(options));
let seen = 0;
for await (const event of repository.fetch()) {
  process.stdout.write(`${JSON.stringify(event)}\n`);
  seen += 1;
  if (event.phase === "ready" || event.phase === "failed" || seen === Number(leaveAfter)) {
    repository.close();
    break;
  }
}
