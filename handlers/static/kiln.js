// Follows a build's log, keeps the facts on a page fresh, and copies an image's name. The pages are whole without it.
"use strict";

const SHOWN = 20000; // lines; a longer log is one link away
const CODES = /\x1b(?:\[[0-?]*[ -\/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;

// A line as a terminal would leave it: without codes, and only what was not written over.
function plain(text) {
  const line = text.replace(/\r+$/, "");
  return line.slice(line.lastIndexOf("\r") + 1).replace(CODES, "").replace(CONTROLS, "");
}

// What a request for this session's own pages shows. A service worker of another page on this host must not see it.
const shown = document.querySelector("meta[name=xsrf]")?.content;
const worker = navigator.serviceWorker;
function overheard() { return Boolean(worker?.controller); }

// The facts come from the page itself, so that there is one template for them.
async function refresh() {
  if (overheard()) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html", ...(shown && { "X-Xsrftoken": shown }) } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("facts");
  const facts = document.getElementById("facts");
  if (!fresh || fresh.outerHTML === facts.outerHTML) return;
  const unfolded = [...facts.querySelectorAll("details")].map((part) => part.open);
  fresh.querySelectorAll("details").forEach((part, index) => { part.open = part.open || Boolean(unfolded[index]); });
  facts.replaceWith(document.adoptNode(fresh));
  document.title = page.title;
  dress();
}

// What only works with JavaScript appears with it.
function dress() {
  for (const time of document.querySelectorAll("time[datetime]:not([data-age])")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.valueOf())) {
      time.title = time.dateTime;
      time.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    }
  }
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.onclick = async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    };
  }
}

function follow(log) {
  const following = document.getElementById("following");
  const source = new EventSource(log.dataset.follow + (shown ? `?_xsrf=${shown}` : ""));
  worker?.addEventListener("controllerchange", () => source.close());
  let waiting = [];
  let attempt = null;
  let phase = null;
  let begun = false;

  function append(text, kind) {
    const line = document.createElement("span");
    line.textContent = text + "\n";
    if (kind) line.className = kind;
    waiting.push(line);
    if (waiting.length === 1) setTimeout(show, 50);
  }

  function show() {
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 40;
    if (!begun) log.replaceChildren(); // the stream brings from the start what the page brought
    begun = true;
    log.append(...waiting);
    waiting = [];
    while (log.childElementCount > SHOWN) log.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  source.addEventListener("open", () => { following.textContent = "Following."; });
  source.addEventListener("error", () => { following.textContent = "The connection broke; trying again."; });
  source.addEventListener("log", (event) => {
    const line = JSON.parse(event.data);
    const number = event.lastEventId.split(":")[0];
    if (attempt !== null && number !== attempt) append(`Attempt ${number}`, "head");
    if (line.phase && (line.phase !== phase || number !== attempt)) append(line.phase, "head");
    attempt = number;
    phase = line.phase || phase;
    append(plain(line.line));
  });
  source.addEventListener("state", (event) => {
    if (["succeeded", "failed", "cancelled"].includes(JSON.parse(event.data).state)) {
      source.close();
      following.textContent = "The build has ended.";
    }
    refresh();
  });
}

dress();
const log = document.querySelector("#log[data-follow]");
if (overheard()) worker.getRegistration().then((one) => one?.unregister()).then((gone) => gone && location.reload());
else if (log) follow(log);
