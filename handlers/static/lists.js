// Keeps a list fresh: fetches its own page every few seconds and changes only what differs, so that focus, selection and
// a screen reader stay where they are. Changes of states are announced. The pages are whole without it.
"use strict";

(() => {
  const PERIOD = 5000; // milliseconds
  const LONGEST = 60000; // between two tries while the server does not answer
  const NAMED = 3; // changes that are announced one by one

  const live = document.querySelector("[data-live]");
  const said = document.getElementById("said");

  function ownText(element) {
    return [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data.trim()).join("\n");
  }

  function sameTag(one, other) {
    return one.cloneNode(false).isEqualNode(other.cloneNode(false));
  }

  function replace(shown, fresh) {
    const active = shown.contains(document.activeElement) ? document.activeElement : null;
    const link = active?.getAttribute("href");
    shown.replaceWith(fresh);
    if (link) [...fresh.querySelectorAll("a[href]")].find((one) => one.getAttribute("href") === link)?.focus({ preventScroll: true });
  }

  function updateRows(shown, fresh) {
    const rows = new Map([...shown.children].map((row) => [row.dataset.key, row]));
    let place = shown.firstElementChild;
    for (const row of [...fresh.children]) {
      const known = rows.get(row.dataset.key);
      rows.delete(row.dataset.key);
      if (!known) shown.insertBefore(row, place);
      else if (known === place) place = place.nextElementSibling;
      else shown.insertBefore(known, place);
      if (known) update(known, row);
    }
    for (const row of rows.values()) row.remove();
  }

  function update(shown, fresh) {
    if (shown.isEqualNode(fresh)) return;
    const [here, there] = [[...shown.children], [...fresh.children]];
    const alike = sameTag(shown, fresh) && here.length > 0 && ownText(shown) === ownText(fresh);
    if (alike && shown.tagName === "TBODY") updateRows(shown, fresh);
    else if (alike && here.length === there.length && here.every((one, index) => one.tagName === there[index].tagName && one.id === there[index].id)) {
      here.forEach((one, index) => update(one, there[index]));
    } else replace(shown, fresh);
  }

  function states() {
    return new Map([...live.querySelectorAll("tr[data-state]")].map((row) => [row.dataset.key, [row.dataset.name, row.dataset.state]]));
  }

  function announce(before, after) {
    const news = [...after].filter(([key, [, state]]) => before.get(key)?.[1] !== state).map(([, [name, state]]) => `${name}: ${state}.`);
    if (!news.length || !said) return;
    const more = news.length - NAMED;
    said.textContent = news.slice(0, NAMED).join(" ") + (more > 0 ? ` And ${more} more.` : "");
  }

  async function refresh() {
    const shown = document.querySelector("meta[name=xsrf]")?.content;
    if (navigator.serviceWorker?.controller) return; // of another page on this host: it must not see what is shown
    const answer = await fetch(location.href, { headers: { Accept: "text/html", ...(shown && { "X-Xsrftoken": shown }) } });
    if (!answer.ok) throw new Error(`${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!fresh) throw new Error("another page");
    const before = states();
    const list = [...fresh.children].map((part) => document.adoptNode(part));
    updateParts(list);
    kiln.dress(live);
    announce(before, states());
  }

  // Sections come and go (the queue), each known by its id.
  function updateParts(fresh) {
    const ids = fresh.map((part) => part.id);
    for (const part of [...live.children]) if (!ids.includes(part.id)) part.remove();
    fresh.forEach((part, index) => {
      const known = [...live.children].find((one) => one.id === part.id);
      if (known) update(known, part);
      else live.insertBefore(part, live.children[index] ?? null);
    });
  }

  let wait = PERIOD;
  let timer = null;
  async function round() {
    timer = null;
    if (document.hidden) return;
    try {
      await refresh();
      wait = PERIOD;
    } catch {
      wait = Math.min(2 * wait, LONGEST);
    }
    timer = setTimeout(round, wait);
  }

  if (live) {
    timer = setTimeout(round, PERIOD);
    document.addEventListener("visibilitychange", () => { if (!document.hidden && timer === null) round(); });
  }
})();
