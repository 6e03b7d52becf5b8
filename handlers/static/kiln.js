// Shared by all pages: updates of a build's facts, local times, buttons that copy. Every page is complete without it.
"use strict";

const kiln = (() => {
  // Requests for pages of this session send this token. Another page on this host may have a service worker, which
  // would see the token, so an observed page sends nothing.
  const token = document.querySelector("meta[name=xsrf]")?.content;
  const worker = navigator.serviceWorker;
  const COPIED = 2000; // milliseconds for which a button shows "Copied"
  const isObserved = () => Boolean(worker?.controller);

  // The facts come from the page itself, so one template suffices.
  async function refresh() {
    const facts = document.getElementById("facts");
    if (isObserved() || !facts) return;
    const address = new URL(location.href);
    if (facts.dataset.part) address.searchParams.set("part", facts.dataset.part);
    const headers = { Accept: "text/html", ...(token && { "X-Xsrftoken": token }) };
    let response;
    try { response = await fetch(address, { headers }); } catch { return; } // the next event repeats it
    if (!response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    replace(facts, page.getElementById("facts"));
    document.title = page.title;
  }

  function replace(facts, fresh) {
    if (!fresh || fresh.isEqualNode(facts.original ?? facts)) return;
    const original = fresh.cloneNode(true);
    const wasOpen = [...facts.querySelectorAll("details")].map((part) => part.open);
    fresh.querySelectorAll("details").forEach((part, index) => { part.open = wasOpen[index] ?? part.open; });
    const focusPath = facts.contains(document.activeElement) && pathTo(facts, document.activeElement);
    facts.replaceWith(document.adoptNode(fresh));
    fresh.original = original;
    activate(fresh);
    if (focusPath) focusPath.reduce((part, index) => part?.children[index], fresh)?.focus();
    document.dispatchEvent(new CustomEvent("kiln:updated"));
  }

  function pathTo(root, part) {
    const indexes = [];
    for (; part !== root; part = part.parentElement) indexes.unshift([...part.parentElement.children].indexOf(part));
    return indexes;
  }

  // Show local times, and the buttons that need JavaScript.
  function activate(root) {
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
        const { textContent, ariaLabel } = button;
        if (textContent === "Copied") return;
        button.textContent = "Copied";
        button.ariaLabel = ariaLabel.replace("Copy", "Copied"); // a screen reader reads the new name of a focused button
        setTimeout(() => Object.assign(button, { textContent, ariaLabel }), COPIED);
      };
    }
  }

  const first = document.getElementById("facts");
  if (first) first.original = first.cloneNode(true);
  activate(document);
  if (isObserved()) worker.getRegistration().then((registration) => registration?.unregister()).then((removed) => removed && location.reload());
  return { token, worker, isObserved, refresh, activate };
})();
