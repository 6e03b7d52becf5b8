// A build's log as it is written: phases that fold, search, links to lines. 100,000 lines stay smooth, because lines
// are added within the time of a frame, in blocks that a browser lays out only where they are seen.
"use strict";

(() => {
  const log = document.getElementById("log");
  if (!log || kiln.overheard()) return;

  const BLOCK = 200; // lines
  const FRAME = 6; // milliseconds of a frame for new lines
  const NEAR = 40; // matches before and after the current one that are marked
  const AGAIN = 2000; // milliseconds until a stream that was refused is asked for again
  const ENDED = ["succeeded", "failed", "cancelled"];
  const byId = (id) => document.getElementById(id);

  // ---- Lines: `lines` has every one that the stream has brought, `waiting` is what of them is not yet on the page.
  const lines = []; // {attempt, number, text, phase, element}
  const last = { attempt: 0, number: 0 }; // of the last line
  let waiting = 0; // the place in `lines` of the first that is not on the page
  let section = null; // the open <details> that lines go to: {attempt, phase, block, count, details, counter}
  let frame = 0;
  let timer = 0;
  let begun = false;

  function schedule() {
    if (frame) return;
    frame = requestAnimationFrame(show);
    timer = setTimeout(show, 250); // a page in the background has no frames
  }

  function show() {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = 0;
    if (!begun) log.replaceChildren(); // the stream brings from the start what the page brought
    begun = true;
    log.dataset.begun = "";
    const until = performance.now() + FRAME;
    while (waiting < lines.length && performance.now() < until) {
      for (let some = 0; some < 50 && waiting < lines.length; some++) place(lines[waiting++]);
    }
    if (section) section.counter.textContent = ` ${section.count.toLocaleString()} lines`;
    if (pinned) toEnd();
    reveal();
    if (waiting < lines.length) schedule();
  }

  function place(line) {
    if (!section || line.attempt !== section.attempt || (line.phase && line.phase !== section.phase)) open(line);
    if (section.count % BLOCK === 0) {
      section.block = section.details.appendChild(made("div", "block"));
    }
    section.count += 1;
    line.element = made("div", "line");
    line.element.dataset.n = line.number;
    line.element.place = waiting - 1;
    if (line.runs) line.element.append(...line.runs.map(([style, text]) => style ? made("span", style, text) : text));
    else line.element.textContent = line.text;
    delete line.runs;
    section.block.append(line.element);
  }

  function open(line) {
    const details = made("details", "phase");
    details.open = true;
    const name = line.phase ?? "start";
    const summary = made("summary", "", line.attempt === first ? name : `attempt ${line.attempt}: ${name}`);
    const counter = made("span", "");
    summary.append(counter);
    details.append(summary);
    if (section) section.counter.textContent = ` ${section.count.toLocaleString()} lines`;
    section = { attempt: line.attempt, phase: line.phase, block: null, count: 0, details, counter };
    log.append(details);
    grows.observe(details);
    mark();
  }

  function made(name, style, text = "") {
    const element = document.createElement(name);
    if (style) element.className = style;
    if (text) element.textContent = text;
    return element;
  }

  // ---- The step that a running build is at is known from its log first.
  function mark() {
    const steps = [...document.querySelectorAll(".steps li")];
    const running = document.querySelector("#facts .lead .state.running");
    const at = steps.findIndex((step) => step.dataset.step === section?.phase);
    if (!running || at < 0) return;
    steps.forEach((step, index) => {
      step.className = index < at ? "done" : index === at ? "current" : "";
      if (index === at) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    });
  }
  document.addEventListener("kiln:fresh", mark);

  // ---- Following: at the end, until somebody scrolls up.
  const follow = byId("follow");
  let pinned = false;
  let top = 0;

  function pin(on) {
    pinned = on;
    follow.setAttribute("aria-pressed", String(on));
    if (on) toEnd();
  }

  const grows = new ResizeObserver(() => { if (pinned) toEnd(); }); // a block has its height once it was laid out

  function toEnd() {
    log.scrollTop = log.scrollHeight;
    top = log.scrollTop;
  }

  log.addEventListener("scroll", () => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 4;
    if (pinned && log.scrollTop < top - 2 && !atEnd) pin(false);
    else if (!pinned && !follow.hidden && log.scrollTop > top && atEnd) pin(true);
    top = log.scrollTop;
  }, { passive: true });
  follow.addEventListener("click", () => pin(!pinned));

  const wrap = byId("wrap");
  wrap.hidden = false;
  wrap.addEventListener("click", () => {
    const on = log.classList.toggle("nowrap");
    wrap.setAttribute("aria-pressed", String(!on));
  });

  // ---- Links to lines: `?attempt=2#L123`, or `#L123` of the first attempt on the page.
  const first = Number(log.dataset.attempt);
  let wanted = null;

  function fromAddress() {
    const found = /^#L([0-9]{1,9})$/.exec(location.hash);
    wanted = found && Number(found[1]);
    if (wanted) { pin(false); reveal(); }
  }

  function reveal() {
    if (!wanted || (last.attempt <= first && last.number < wanted)) return;
    const line = lines.find((one) => one.attempt === first && one.number === wanted);
    if (!line?.element) return;
    wanted = null;
    log.querySelector(".target")?.classList.remove("target");
    line.element.classList.add("target");
    bring(line.element);
  }

  function bring(element) {
    element.closest("details").open = true;
    element.scrollIntoView({ block: "center" });
    top = log.scrollTop;
  }

  log.addEventListener("click", (event) => {
    const element = event.target.closest?.(".line");
    const gutter = element && parseFloat(getComputedStyle(element).paddingLeft);
    const line = element && lines[element.place];
    if (!line || event.clientX - element.getBoundingClientRect().left > gutter) return;
    const address = new URL(location.href);
    address.hash = `L${line.number}`;
    if (line.attempt !== first || address.searchParams.has("attempt")) address.searchParams.set("attempt", line.attempt);
    history.replaceState(null, "", address);
    log.querySelector(".target")?.classList.remove("target");
    element.classList.add("target");
  });
  addEventListener("hashchange", fromAddress);

  // ---- Search: in all lines, also in phases that are folded.
  const find = byId("find");
  const found = byId("found");
  let matches = []; // places in `lines`
  let current = -1;
  let pattern = null;
  let searching = 0;
  let searched = 0; // the place in `lines` up to which matches are known

  function search() {
    pattern = find.value ? new RegExp(find.value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi") : null;
    matches = [];
    searched = 0;
    current = -1;
    paint();
    goOn();
  }

  function goOn() { // for the time of a frame, then after what else is to be done
    clearTimeout(searching);
    searching = 0;
    const until = performance.now() + FRAME;
    while (pattern && searched < lines.length && performance.now() < until) {
      for (let some = 0; some < 200 && searched < lines.length; some++, searched++) {
        pattern.lastIndex = 0;
        if (pattern.test(lines[searched].text)) matches.push(searched);
      }
    }
    if (pattern && searched < lines.length) searching = setTimeout(goOn);
    if (matches.length && current < 0) go(0);
    else count();
  }

  function count() {
    const none = pattern && searched === lines.length ? "no match" : "";
    found.textContent = matches.length ? `${Math.max(current + 1, 1)} of ${matches.length}` : none;
  }

  function go(index) {
    if (!matches.length) return;
    current = (index + matches.length) % matches.length;
    pin(false);
    const line = lines[matches[current]];
    if (line.element) bring(line.element);
    count();
    paint();
  }

  function paint() {
    log.querySelector(".hit")?.classList.remove("hit");
    lines[matches[current]]?.element?.classList.add("hit");
    if (!globalThis.Highlight) return;
    const near = matches.slice(Math.max(0, current - NEAR), current + NEAR + 1);
    CSS.highlights.set("found", new Highlight(...near.flatMap((index) => [...ranges(lines[index])])));
  }

  function* ranges(line) {
    if (!line.element) return;
    const walker = document.createTreeWalker(line.element, NodeFilter.SHOW_TEXT);
    const texts = [];
    for (let node = walker.nextNode(), start = 0; node; start += node.length, node = walker.nextNode()) texts.push({ node, start });
    const at = (offset) => {
      const text = texts.findLast((one) => one.start <= offset);
      return [text.node, offset - text.start];
    };
    for (const match of line.text.matchAll(pattern)) {
      const range = document.createRange();
      range.setStart(...at(match.index));
      range.setEnd(...at(match.index + match[0].length));
      yield range;
    }
  }

  let soon = 0;
  find.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(search, 150); });
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); go(current - 1); }
    if (event.key === "Escape") { find.value = ""; search(); log.focus(); }
  });
  byId("search").hidden = false;
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); go(current + 1); });
  byId("previous").addEventListener("click", () => go(current - 1));
  log.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); find.focus(); find.select(); }
    if (event.key === "n") go(current + 1);
    if (event.key === "N") go(current - 1);
  });

  // ---- The stream. A browser resumes one that broke with `Last-Event-ID`. One that was refused (503 while the server
  // restarts) is asked for again here, and brings again what is there already.
  const following = byId("following");

  function take(event) {
    const [attempt, number] = event.lastEventId.split(":").map(Number);
    if (attempt < last.attempt || (attempt === last.attempt && number <= last.number)) return;
    Object.assign(last, { attempt, number });
    const { line, phase, runs } = JSON.parse(event.data);
    lines.push({ attempt, number, text: line, phase, runs });
    schedule();
    if (pattern && !searching) searching = setTimeout(goOn, 200);
  }

  function connect() {
    const address = new URL(log.dataset.stream, location.href);
    if (last.attempt) address.searchParams.set("attempt", last.attempt);
    if (kiln.shown) address.searchParams.set("_xsrf", kiln.shown);
    const source = new EventSource(address);
    const left = () => source.close();
    kiln.worker?.addEventListener("controllerchange", left);
    source.addEventListener("log", take);
    source.addEventListener("open", () => { if (!follow.hidden) following.textContent = "Following the log."; });
    source.addEventListener("error", () => {
      following.textContent = "The connection is lost. Trying again…";
      if (source.readyState !== EventSource.CLOSED) return;
      kiln.worker?.removeEventListener("controllerchange", left);
      if (!kiln.overheard()) setTimeout(connect, AGAIN);
    });
    source.addEventListener("state", (event) => {
      const { state } = JSON.parse(event.data);
      const ended = ENDED.includes(state);
      if (ended) {
        source.close();
        log.dataset.begun = ""; // also where there are no lines
        following.textContent = follow.hidden ? "" : `The build has ended: ${state}.`;
        follow.hidden = true;
      } else if (follow.hidden) {
        follow.hidden = false;
        following.textContent = "Following the log.";
        if (!wanted) pin(true);
      }
      kiln.refresh();
    });
  }

  fromAddress();
  connect();
})();
