// Search in the page, and buttons that copy. Everything else works without.
"use strict";

const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

for (const box of document.querySelectorAll(".snippet")) {
  const button = element("button", "copy", "Copy");
  button.type = "button";
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
  const input = form.querySelector("input"), root = form.dataset.root, folder = form.dataset.search.replace("index.json", "");
  const results = document.getElementById("results"), count = document.getElementById("count");
  const hits = document.getElementById("hits"), filters = document.getElementById("filters");
  const asked = new URLSearchParams(location.search);
  const STEP = 30;
  let turn = 0, shown = STEP;

  // Each file is fetched once, and only if a query needs it.
  const files = new Map();
  const get = (path) => {
    if (!files.has(path)) files.set(path, fetch(folder + path).then((answer) => answer.json()));
    return files.get(path);
  };

  const hash = (text) => {
    let found = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) found = Math.imul(found ^ byte, 0x01000193) >>> 0;
    return found;
  };
  const numbers = (gaps) => {
    let last = 0;
    return gaps.map((gap) => (last += gap));
  };

  // The adapters in which a word begins so, and those with it in their name, task or keywords.
  const lookUp = async (word, buckets) => {
    const part = await get(`words/${hash([...word].slice(0, 2).join("")) % buckets}.json`);
    const all = new Set(), head = new Set();
    for (const [key, [every, first]] of Object.entries(part)) {
      if (key === word || (word.length > 1 && key.startsWith(word))) {
        for (const n of numbers(every)) all.add(n);
        for (const n of numbers(first)) head.add(n);
      }
    }
    return [all, head];
  };

  const find = async (words, chosen) => {
    const { buckets, adapters } = await get("index.json");
    const looked = await Promise.all(words.map((word) => lookUp(word, buckets)));
    const sets = looked.map(([all]) => all);
    for (const key of chosen) {
      const part = await get(`facets/${hash(key) % buckets}.json`);
      sets.push(new Set(numbers(part[key] ?? [])));
    }
    sets.sort((a, b) => a.size - b.size);
    const [smallest, ...rest] = sets.length ? sets : [Array.from({ length: adapters }, (_, n) => n)];
    const found = [...smallest].filter((n) => rest.every((set) => set.has(n)));
    const score = (n) => looked.reduce((sum, [, head]) => sum + head.has(n), 0);
    return found.map((n) => [score(n), n]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).map(([, n]) => n);
  };

  const card = ([page, name, version, from, summary, tags]) => {
    const item = element("li"), title = element("h3", "name"), link = element("a", "", name);
    link.href = root + page;
    title.append(link, " ", element("span", "version", version));
    const list = element("ul", "tags");
    for (const tag of tags) list.append(element("li", "", tag));
    item.append(title, element("p", "from", from), element("p", "", summary), list);
    return item;
  };

  const show = async () => {
    const mine = ++turn;
    const words = input.value.normalize("NFKC").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
    const selects = [...filters.querySelectorAll("select")].filter((select) => select.value);
    const chosen = selects.map((select) => `${select.name}:${select.value}`);
    results.hidden = !words.length && !chosen.length;
    const state = new URLSearchParams(selects.map((select) => [select.name, select.value]));
    if (input.value.trim()) state.set("q", input.value.trim());
    try {
      history.replaceState(null, "", String(state) ? `?${state}` : location.pathname);
    } catch { /* pages opened as files have no history to write */ }
    if (results.hidden) return;
    const found = await find(words, chosen);
    const { block } = await get("index.json");
    const rows = await Promise.all(found.slice(0, shown).map(async (n) => (await get(`rows/${Math.floor(n / block)}.json`))[n % block]));
    if (mine !== turn) return; // somebody typed on
    const list = element("ul", "cards");
    list.append(...rows.map(card));
    hits.replaceChildren(list);
    if (found.length > shown) {
      const more = element("button", "more", `Show more of ${found.length.toLocaleString("en")}`);
      more.type = "button";
      more.addEventListener("click", () => { shown += STEP; show(); });
      hits.append(more);
    }
    count.textContent = found.length ? `${found.length.toLocaleString("en")} found` : "Nothing found";
  };
  const again = () => { shown = STEP; show(); };

  const offer = async () => {
    for (const [name, title, values] of (await get("index.json")).filters) {
      if (!values.length) continue;
      const box = element("div"), label = element("label", "", title), select = element("select");
      select.name = name;
      label.htmlFor = select.id = `filter-${name}`;
      select.append(new Option("any", ""));
      for (const [value, number] of values) select.append(new Option(`${value} (${number.toLocaleString("en")})`, value));
      const wanted = asked.get(name);
      if (wanted && ![...select.options].some((option) => option.value === wanted)) select.append(new Option(wanted, wanted));
      if (wanted) select.value = wanted;
      select.addEventListener("change", again);
      box.append(label, select);
      filters.append(box);
    }
    filters.hidden = false;
  };

  input.value = asked.get("q") ?? "";
  input.addEventListener("input", again);
  form.addEventListener("submit", (event) => { event.preventDefault(); again(); });
  offer().then(() => { if (String(asked)) show(); });
}
