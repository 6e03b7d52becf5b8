// The log of a build: phases that fold, search, links to lines, updates while the build runs.
//
// 100,000 lines must not delay a key press by more than 100 ms. Each frame therefore adds lines for a limited time, in
// small blocks that the browser lays out and paints only near the visible part. Chapters group the blocks, because the
// browser checks in each frame which of its elements are visible.
"use strict";

(() => {
  const log = document.getElementById("log");
  if (!log || kiln.isObserved()) return;

  const BLOCK = 50; // lines
  const CHAPTER = 2000; // lines
  const BUDGET = 6; // milliseconds per frame for new lines, and per task for the search
  const HIGHLIGHTED = 40; // matches before and after the current one that have a highlight
  const RETRY = 2000; // milliseconds until the next request for a stream that the server refused
  const ENDED = ["succeeded", "failed", "cancelled"];
  const byId = (id) => document.getElementById(id);

  // ---- Lines. Messages wait until a frame has time for them: the browser may deliver hundreds of them in one task.
  const messages = []; // [id, data] from the stream
  const lines = []; // {attempt, number, text, element}
  const last = { attempt: 0, number: 0 }; // of the last line
  let next = 0; // index of the next message to render
  let section = null; // the phase that receives lines: {attempt, phase, details, chapter, block, count, counter}
  let frame = 0;
  let timer = 0;
  let begun = false;

  function schedule() {
    if (frame) return;
    frame = requestAnimationFrame(render);
    timer = setTimeout(render, 250); // a page in the background has no frames
  }

  function render() {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = 0;
    if (!begun) log.replaceChildren(); // the stream repeats the lines that the page contained
    begun = true;
    log.dataset.begun = "";
    const end = performance.now() + BUDGET;
    while (next < messages.length && performance.now() < end) {
      for (let count = 0; count < 50 && next < messages.length; count++) append(...messages[next++]);
    }
    showCount();
    showTarget();
    if (pattern && !searchTimer) searchTimer = setTimeout(searchMore, 200);
    if (next < messages.length) schedule();
    else messages.length = next = 0;
  }

  function append(id, data) {
    const [attempt, number] = id.split(":").map(Number);
    if (attempt < last.attempt || (attempt === last.attempt && number <= last.number)) return;
    Object.assign(last, { attempt, number });
    const { line: text, phase, runs } = JSON.parse(data);
    if (!section || attempt !== section.attempt || (phase && phase !== section.phase)) openSection(attempt, phase);
    if (section.count % CHAPTER === 0) section.chapter = section.details.appendChild(create("div", "chapter"));
    if (section.count % BLOCK === 0) section.block = section.chapter.appendChild(create("div", "block"));
    section.count += 1;
    const element = create("div", "line");
    element.dataset.n = number;
    element.index = lines.length;
    if (runs) element.append(...runs.map(([style, part]) => style ? create("span", style, part) : part));
    else element.textContent = text;
    section.block.append(element);
    lines.push({ attempt, number, text, element });
  }

  function openSection(attempt, phase) {
    showCount(); // of the section before
    const details = create("details", "phase");
    details.open = true;
    const name = phase ?? "start";
    const summary = create("summary", "", attempt === first ? name : `attempt ${attempt}: ${name}`);
    const counter = create("span", "");
    summary.append(counter);
    details.append(summary);
    section = { attempt, phase, details, chapter: null, block: null, count: 0, counter };
    log.append(details);
    growth.observe(details);
    markStep();
  }

  function showCount() {
    if (section) section.counter.textContent = ` ${section.count.toLocaleString()} lines`;
  }

  function create(name, classes, text = "") {
    const element = document.createElement(name);
    if (classes) element.className = classes;
    if (text) element.textContent = text;
    return element;
  }

  // ---- Steps: the log shows the current step of a running build before the other facts do. They are those of the
  // latest attempt, while the log may still be that of an earlier one.
  function markStep() {
    const steps = [...document.querySelectorAll(".steps li")];
    const running = document.querySelector("#facts .lead .state.running");
    const at = steps.findIndex((step) => step.dataset.step === section?.phase);
    if (!running || at < 0 || section.attempt !== Number(steps[0].parentElement.dataset.attempt)) return;
    steps.forEach((step, index) => {
      step.className = index < at ? "done" : index === at ? "current" : "";
      if (index === at) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    });
  }
  document.addEventListener("kiln:updated", markStep);

  // ---- Following: the newest line stays visible until the user scrolls up.
  const follow = byId("follow");
  let following = false;
  let top = 0;

  function setFollowing(on) {
    following = on;
    follow.setAttribute("aria-pressed", String(on));
    if (on) scrollToEnd();
  }

  // The height changes with new lines, and again when the browser lays out a block, whose height it had estimated.
  const growth = new ResizeObserver(() => { if (following) scrollToEnd(); });

  function scrollToEnd() {
    log.scrollTop = log.scrollHeight;
    top = log.scrollTop;
  }

  log.addEventListener("scroll", () => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 4;
    if (following && log.scrollTop < top - 2 && !atEnd) setFollowing(false);
    else if (!following && !follow.hidden && log.scrollTop > top && atEnd) setFollowing(true);
    top = log.scrollTop;
  }, { passive: true });
  follow.addEventListener("click", () => setFollowing(!following));

  const wrap = byId("wrap");
  wrap.hidden = false;
  wrap.addEventListener("click", () => {
    const on = log.classList.toggle("nowrap");
    wrap.setAttribute("aria-pressed", String(!on));
  });

  // ---- Links to lines: `?attempt=2#L123`, or `#L123` for the first attempt on the page.
  const first = Number(log.dataset.attempt);
  let target = null; // the number of a line that is not shown yet

  function readAddress() {
    const match = /^#L([0-9]{1,9})$/.exec(location.hash);
    target = match && Number(match[1]);
    if (target) { setFollowing(false); showTarget(); }
  }

  function showTarget() {
    if (!target || (last.attempt <= first && last.number < target)) return;
    const line = lines.find(({ attempt, number }) => attempt === first && number === target);
    if (!line) return;
    target = null;
    mark("target", line.element);
    scrollTo(line.element);
  }

  const marked = {}; // the element with a class, by the class: a query would search 100,000 lines

  function mark(name, element) {
    marked[name]?.classList.remove(name);
    marked[name] = element;
    element?.classList.add(name);
  }

  function scrollTo(element) {
    element.closest("details").open = true;
    element.scrollIntoView({ block: "center" });
    top = log.scrollTop;
  }

  log.addEventListener("click", (event) => {
    const element = event.target.closest?.(".line");
    const gutter = element && parseFloat(getComputedStyle(element).paddingLeft);
    const line = element && lines[element.index];
    if (!line || event.clientX - element.getBoundingClientRect().left > gutter) return;
    const address = new URL(location.href);
    address.hash = `L${line.number}`;
    if (line.attempt !== first || address.searchParams.has("attempt")) address.searchParams.set("attempt", line.attempt);
    history.replaceState(null, "", address);
    mark("target", element);
  });
  addEventListener("hashchange", readAddress);

  // ---- Search: in all lines, including those of folded phases.
  const input = byId("search-text");
  const matchCount = byId("match-count");
  let matches = []; // indexes in `lines`
  let current = -1;
  let pattern = null;
  let searchTimer = 0;
  let searched = 0; // lines whose matches are known

  function search() {
    pattern = input.value ? new RegExp(input.value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi") : null;
    matches = [];
    searched = 0;
    current = -1;
    highlight();
    searchMore();
  }

  function searchMore() { // in tasks of limited time, so that other tasks run in between
    clearTimeout(searchTimer);
    searchTimer = 0;
    const end = performance.now() + BUDGET;
    while (pattern && searched < lines.length && performance.now() < end) {
      for (let count = 0; count < 500 && searched < lines.length; count++, searched++) {
        pattern.lastIndex = 0;
        if (pattern.test(lines[searched].text)) matches.push(searched);
      }
    }
    if (pattern && searched < lines.length) searchTimer = setTimeout(searchMore);
    if (matches.length && current < 0) goTo(0);
    else showMatchCount();
  }

  function showMatchCount() {
    const none = pattern && searched === lines.length ? "no match" : "";
    matchCount.textContent = matches.length ? `${Math.max(current + 1, 1)} of ${matches.length}` : none;
  }

  function goTo(index) {
    if (!matches.length) return;
    current = (index + matches.length) % matches.length;
    setFollowing(false);
    scrollTo(lines[matches[current]].element);
    showMatchCount();
    highlight();
  }

  function highlight() {
    mark("hit", lines[matches[current]]?.element);
    if (!globalThis.Highlight) return;
    const nearby = matches.slice(Math.max(0, current - HIGHLIGHTED), current + HIGHLIGHTED + 1);
    CSS.highlights.set("match", new Highlight(...nearby.flatMap((index) => [...ranges(lines[index])])));
  }

  function* ranges(line) {
    const walker = document.createTreeWalker(line.element, NodeFilter.SHOW_TEXT);
    const texts = [];
    for (let node = walker.nextNode(), start = 0; node; start += node.length, node = walker.nextNode()) texts.push({ node, start });
    const at = (offset) => {
      const text = texts.findLast(({ start }) => start <= offset);
      return [text.node, offset - text.start];
    };
    for (const match of line.text.matchAll(pattern)) {
      const range = document.createRange();
      range.setStart(...at(match.index));
      range.setEnd(...at(match.index + match[0].length));
      yield range;
    }
  }

  let inputTimer = 0;
  input.addEventListener("input", () => { clearTimeout(inputTimer); inputTimer = setTimeout(search, 150); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); goTo(current - 1); }
    if (event.key === "Escape") { input.value = ""; search(); log.focus(); }
  });
  byId("search").hidden = false;
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); goTo(current + 1); });
  byId("previous").addEventListener("click", () => goTo(current - 1));
  log.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); input.focus(); input.select(); }
    if (event.key === "n") goTo(current + 1);
    if (event.key === "N") goTo(current - 1);
  });

  // ---- The stream. The browser resumes an interrupted stream with `Last-Event-ID`, but gives up if the server refuses
  // it (503 during a restart). The script then opens a new stream, and `append` ignores the lines that it repeats.
  const status = byId("log-status");

  function receive(event) {
    messages.push([event.lastEventId, event.data]);
    schedule();
  }

  function connect() {
    const address = new URL(log.dataset.stream, location.href);
    if (last.attempt) address.searchParams.set("attempt", last.attempt);
    if (kiln.token) address.searchParams.set("_xsrf", kiln.token);
    const source = new EventSource(address);
    const close = () => source.close();
    kiln.worker?.addEventListener("controllerchange", close);
    source.addEventListener("log", receive);
    source.addEventListener("open", () => { if (!follow.hidden) status.textContent = "Following the log."; });
    source.addEventListener("error", () => {
      status.textContent = "The connection is lost. Reconnecting…";
      if (source.readyState !== EventSource.CLOSED) return;
      kiln.worker?.removeEventListener("controllerchange", close);
      if (!kiln.isObserved()) setTimeout(connect, RETRY);
    });
    source.addEventListener("state", (event) => {
      const { state } = JSON.parse(event.data);
      const ended = ENDED.includes(state);
      if (ended) {
        source.close();
        log.dataset.begun = ""; // also for an empty log
        status.textContent = follow.hidden ? "" : `The build has ended: ${state}.`;
        follow.hidden = true;
      } else if (follow.hidden) {
        follow.hidden = false;
        status.textContent = "Following the log.";
        if (!target) setFollowing(true);
      }
      kiln.refresh();
    });
  }

  readAddress();
  connect();
})();
