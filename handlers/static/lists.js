// Updates a list: fetches its page every few seconds and replaces only the parts that differ, so that focus, selection
// and the position of a screen reader remain. Announces changes of states. The pages are complete without it.
"use strict";

(() => {
  const PERIOD = 5000; // milliseconds
  const MAX_PERIOD = 60000; // milliseconds, while the server does not answer
  const MAX_ANNOUNCED = 3; // changes in one announcement; the others are counted

  const live = document.querySelector("[data-live]");
  const announcement = document.getElementById("announcement");

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
    const [before, after] = [[...shown.children], [...fresh.children]];
    const alike = sameTag(shown, fresh) && before.length > 0 && ownText(shown) === ownText(fresh);
    if (alike && shown.tagName === "TBODY") updateRows(shown, fresh);
    else if (alike && before.length === after.length && before.every((child, index) => child.tagName === after[index].tagName && child.id === after[index].id)) {
      before.forEach((child, index) => update(child, after[index]));
    } else replace(shown, fresh);
  }

  function states() {
    return new Map([...live.querySelectorAll("tr[data-state]")].map((row) => [row.dataset.key, [row.dataset.name, row.dataset.state]]));
  }

  function announce(before, after) {
    const changes = [...after].filter(([key, [, state]]) => before.get(key)?.[1] !== state).map(([, [name, state]]) => `${name}: ${state}.`);
    if (!changes.length || !announcement) return;
    const more = changes.length - MAX_ANNOUNCED;
    announcement.textContent = changes.slice(0, MAX_ANNOUNCED).join(" ") + (more > 0 ? ` And ${more} more.` : "");
  }

  async function refresh() {
    const { token } = kiln;
    if (kiln.isObserved()) return;
    const response = await fetch(location.href, { headers: { Accept: "text/html", ...(token && { "X-Xsrftoken": token }) } });
    if (!response.ok) throw new Error(`${response.status}`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!fresh) throw new Error("The response is another page.");
    const before = states();
    kiln.activate(fresh); // before the comparison, so that an unchanged button keeps the focus
    updateSections([...fresh.children].map((part) => document.adoptNode(part)));
    announce(before, states());
  }

  // A section, such as the queue, may appear or disappear. Its id identifies it.
  function updateSections(fresh) {
    const ids = fresh.map((part) => part.id);
    for (const part of [...live.children]) if (!ids.includes(part.id)) part.remove();
    fresh.forEach((part, index) => {
      const known = [...live.children].find((one) => one.id === part.id);
      if (known) update(known, part);
      else live.insertBefore(part, live.children[index] ?? null);
    });
  }

  let period = PERIOD;
  let timer = null;
  async function poll() {
    timer = null;
    if (document.hidden) return;
    try {
      await refresh();
      period = PERIOD;
    } catch {
      period = Math.min(2 * period, MAX_PERIOD);
    }
    timer = setTimeout(poll, period);
  }

  if (live) {
    timer = setTimeout(poll, PERIOD);
    document.addEventListener("visibilitychange", () => { if (!document.hidden && timer === null) poll(); });
  }
})();
