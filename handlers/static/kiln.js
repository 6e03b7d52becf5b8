// What all pages share: fresh facts, local times, copying. Every page is whole without it.
"use strict";

const kiln = (() => {
  // What a request for this session's own pages shows. A service worker of another page on this host must not see it.
  const shown = document.querySelector("meta[name=xsrf]")?.content;
  const worker = navigator.serviceWorker;
  const overheard = () => Boolean(worker?.controller);

  // The facts come from the page itself, so that there is one template for them.
  async function refresh() {
    const facts = document.getElementById("facts");
    if (overheard() || !facts) return;
    const address = new URL(location.href);
    if (facts.dataset.part) address.searchParams.set("part", facts.dataset.part);
    const headers = { Accept: "text/html", ...(shown && { "X-Xsrftoken": shown }) };
    let answer;
    try { answer = await fetch(address, { headers }); } catch { return; } // the next time will do
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    replace(facts, page.getElementById("facts"));
    document.title = page.title;
  }

  function replace(facts, fresh) {
    if (!fresh || fresh.isEqualNode(facts.untouched ?? facts)) return;
    const untouched = fresh.cloneNode(true);
    const unfolded = [...facts.querySelectorAll("details")].map((part) => part.open);
    fresh.querySelectorAll("details").forEach((part, index) => { part.open = unfolded[index] ?? part.open; });
    const focused = facts.contains(document.activeElement) && path(facts, document.activeElement);
    facts.replaceWith(document.adoptNode(fresh));
    fresh.untouched = untouched;
    dress(fresh);
    if (focused) focused.reduce((part, index) => part?.children[index], fresh)?.focus();
    document.dispatchEvent(new CustomEvent("kiln:fresh"));
  }

  function path(root, part) {
    const places = [];
    for (; part !== root; part = part.parentElement) places.unshift([...part.parentElement.children].indexOf(part));
    return places;
  }

  // What only works with JavaScript appears with it.
  function dress(root) {
    for (const time of root.querySelectorAll("time[datetime]:not([data-age])")) {
      const at = new Date(time.dateTime);
      if (!Number.isNaN(at.valueOf()) && !time.hasAttribute("title")) {
        time.title = time.dateTime;
        time.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
      }
    }
    for (const button of root.querySelectorAll("button[data-copy]")) {
      button.hidden = !navigator.clipboard;
      button.onclick = async () => {
        await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
        button.textContent = "Copied";
      };
    }
  }

  const first = document.getElementById("facts");
  if (first) first.untouched = first.cloneNode(true);
  dress(document);
  if (overheard()) worker.getRegistration().then((one) => one?.unregister()).then((gone) => gone && location.reload());
  return { shown, worker, overheard, refresh, dress };
})();
