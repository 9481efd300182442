// Search in the page, and buttons that copy. Everything else works without.
"use strict";

for (const box of document.querySelectorAll(".snippet")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = box.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(box.querySelector("code"));
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  box.append(button);
}

const form = document.querySelector("form[data-search]");
if (form) {
  const input = form.querySelector("input"), results = document.getElementById("results"), root = form.dataset.root;
  const adapters = [];
  let loading = null;

  const load = () => {
    // A few thousand adapters in each file; shown as they come.
    loading ??= (async () => {
      const list = await (await fetch(form.dataset.search)).json();
      for (const name of list.parts) {
        const part = await (await fetch(root + "search/" + name)).json();
        for (const [page, name_, version, from, summary, text, tags] of part) {
          adapters.push({ page, name: name_, version, from, summary, tags, text });
        }
        show();
      }
    })();
    return loading;
  };

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    results.hidden = words.length === 0;
    if (!words.length) return;
    const hits = [];
    for (const adapter of adapters) {
      if (!words.every((word) => adapter.text.includes(word))) continue;
      const name = adapter.name.toLowerCase();
      hits.push([words.reduce((sum, word) => sum + (name === word ? 4 : name.includes(word) ? 2 : 0), 0), hits.length, adapter]);
    }
    hits.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const list = element("ul", "cards");
    for (const [, , adapter] of hits.slice(0, 30)) {
      const item = element("li"), title = element("h3"), link = element("a", "", adapter.name);
      link.href = root + adapter.page;
      title.append(link, " ", element("span", "version", adapter.version));
      const tags = element("ul", "tags");
      for (const tag of adapter.tags) tags.append(element("li", "", tag));
      item.append(title, element("p", "from", adapter.from), element("p", "", adapter.summary), tags);
      list.append(item);
    }
    const count = element("p", "", hits.length ? `${hits.length} found${hits.length > 30 ? ", the first 30" : ""}` : "Nothing found");
    results.replaceChildren(count, list);
  };

  input.addEventListener("focus", load, { once: true });
  input.addEventListener("input", () => { load(); show(); });
  form.addEventListener("submit", (event) => { event.preventDefault(); load(); show(); });
  const asked = new URLSearchParams(location.search).get("q");
  if (asked) { input.value = asked; load(); }
}
