// The page: its state (which never leaves this window), the sliders, the live bits, the tabs.

import { el, fixed, signed } from "/draw.js";
import { libraryViews } from "/library.js";
import { textViews } from "/views.js";

const $ = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=token]").content;
const LEAST = -1, MOST = 1.5, STEP = 0.05;
const PAUSE = 250; // milliseconds without a change before something is asked

const EXAMPLES = {
  da: "Værelset var rent, men morgenmaden",
  uk: "Номер був чистий, але сніданок",
  en: "The room was clean, but breakfast",
  de: "Das Zimmer war sauber, aber das Frühstück",
  fr: "La chambre était propre, mais le petit-déjeuner",
  es: "La habitación estaba limpia, pero el desayuno",
  id: "Kamarnya bersih, tetapi sarapannya",
  ru: "Номер был чистый, но завтрак",
  sv: "Rummet var rent, men frukosten",
  zh: "房间很干净，但是早餐",
  ja: "部屋はきれいでしたが、朝食は",
  ko: "방은 깨끗했지만 아침 식사는",
  ar: "كانت الغرفة نظيفة، لكن الإفطار",
  fa: "اتاق تمیز بود، اما صبحانه",
  he: "החדר היה נקי, אבל ארוחת הבוקר",
  hi: "कमरा साफ़ था, लेकिन नाश्ता",
  th: "ห้องสะอาด แต่อาหารเช้า",
  sw: "Chumba kilikuwa safi, lakini kifungua kinywa",
  tr: "Oda temizdi ama kahvaltı",
  vi: "Phòng sạch sẽ, nhưng bữa sáng",
};

const state = { library: null, weights: new Map(), textLanguage: "" };

/** Ask the server; the error's message is what the page shows. */
export async function api(address, body, signal) {
  const given = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Playground-Token": token },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(`/api/${address}`, { ...given, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is adapters-hub play still running?");
  }
  if (answer.headers.get("Content-Disposition")) return answer;
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error);
  return data;
}

/** A function whose newer call ends an older one; undefined where one was ended. */
export function newest(ask) {
  let running = null;
  return async (...given) => {
    running?.abort();
    const mine = (running = new AbortController());
    try {
      return await ask(mine.signal, ...given);
    } catch (error) {
      if (error.name === "AbortError") return undefined;
      throw error;
    } finally {
      if (running === mine) running = null;
    }
  };
}

// ── blends ──────────────────────────────────────────────────────────────────────────────────────

const adapter = (name) => state.library.adapters.find((one) => one.name === name);

/** A blend as it is written in Python and on the command line. */
export function written(blend) {
  const terms = Object.entries(blend).filter(([, weight]) => weight);
  if (!terms.length) return "bare";
  return terms.map(([name, weight], place) => {
    const size = Math.abs(weight), term = size === 1 ? name : `${+size.toFixed(3)}*${name}`;
    if (!place) return weight < 0 ? `-${term}` : term;
    return `${weight < 0 ? "-" : "+"} ${term}`;
  }).join(" ");
}

/** Your blend, in the order of the sliders: languages come first. */
function mine() {
  const kinds = ["language", "domain", "other"];
  const infos = state.library.adapters.filter((info) => state.weights.get(info.name));
  infos.sort((a, b) => kinds.indexOf(a.kind) - kinds.indexOf(b.kind));
  return Object.fromEntries(infos.map((info) => [info.name, state.weights.get(info.name)]));
}
const same = (a, b) => {
  const key = (blend) => JSON.stringify(Object.entries(blend).sort());
  return key(a) === key(b);
};

/** The language that a blend leans to, for fonts and reading aloud. */
function languageOf(blend) {
  const tags = Object.entries(blend)
    .map(([name, weight]) => [adapter(name)?.language, weight])
    .filter(([tag, weight]) => tag && weight > 0)
    .sort((a, b) => b[1] - a[1]);
  return tags[0]?.[0] ?? state.textLanguage;
}

/** What stands side by side: bare, the language's, the domain's, their sum, and yours. */
function columns() {
  const language = $("language").value, domain = $("domain").value;
  const wanted = [{}];
  if (language) wanted.push({ [language]: 1 });
  if (domain) wanted.push({ [domain]: 1 });
  if (language && domain) wanted.push({ [language]: 1, [domain]: 1 });
  const list = wanted.map((blend) => ({ blend, label: written(blend), mine: false }));
  const yours = mine();
  const there = list.find((column) => same(column.blend, yours));
  if (there) there.mine = Object.keys(yours).length > 0;
  else list.push({ blend: yours, label: written(yours), mine: true });
  for (const column of list) column.language = languageOf(column.blend);
  return list;
}

// ── sliders ─────────────────────────────────────────────────────────────────────────────────────

function showWeight(box, weight) {
  const input = box.querySelector("input"), place = (value) => ((value - LEAST) / (MOST - LEAST)) * 100;
  input.value = weight;
  box.querySelector("output").value = fixed(weight, 2);
  box.classList.toggle("on", weight !== 0);
  box.classList.toggle("minus", weight < 0);
  input.style.setProperty("--zero", `${place(0)}%`);
  input.style.setProperty("--from", `${place(Math.min(0, weight))}%`);
  input.style.setProperty("--to", `${place(Math.max(0, weight))}%`);
  input.setAttribute("aria-valuetext", `${fixed(weight, 2)} of ${box.dataset.name}`);
}

function setWeight(name, weight) {
  if (weight) state.weights.set(name, weight);
  else state.weights.delete(name);
  const box = document.querySelector(`.slider[data-name="${CSS.escape(name)}"]`);
  if (box) showWeight(box, weight);
  $("blend").textContent = written(mine());
}

function slider(info) {
  const id = `weight-${info.name}`;
  const detail = info.kind === "language" ? info.language_name : info.head ? info.task : "";
  const box = el("div", { className: "slider", "data-name": info.name, title: about(info) },
    el("label", { htmlFor: id }, info.name, detail ? el("small", {}, detail) : null),
    el("input", {
      id, type: "range", min: LEAST, max: MOST, step: STEP,
      oninput: (event) => { setWeight(info.name, +event.target.value); changed(); },
      ondblclick: () => { setWeight(info.name, 0); changed(); },
    }),
    el("output", { htmlFor: id }));
  showWeight(box, state.weights.get(info.name) ?? 0);
  return box;
}

function about(info) {
  const over = info.over.length ? `\ntrained over ${info.over.join(" ")}` : "";
  const numbers = Object.entries(info.metrics).map(([name, value]) => `\n${name}: ${fixed(value, 3)}`);
  return `${info.task ?? "no task said"}, rank ${info.rank}, ${(info.bytes / 1024).toFixed(0)} KiB${over}${numbers.join("")}`;
}

function showSliders() {
  const find = $("filter").value.trim().toLowerCase();
  const fits = (info) => [info.name, info.language_name, info.domain, info.task]
    .some((text) => text?.toLowerCase().includes(find)) || state.weights.get(info.name);
  const titles = { language: "Languages", domain: "Domains", other: "Others" };
  $("sliders").replaceChildren(...Object.entries(titles).flatMap(([kind, title]) => {
    const infos = state.library.adapters.filter((info) => info.kind === kind && fits(info)).slice(0, 200);
    if (!infos.length) return [];
    return [el("div", { className: "group", role: "group", "aria-label": title },
      el("h3", {}, title), infos.map(slider))];
  }));
}

// ── what is live ────────────────────────────────────────────────────────────────────────────────

const readBits = newest(async (signal, text, shown) =>
  api("read", { text, blends: shown.map((column) => column.blend) }, signal));

async function showBits(shown) {
  const text = $("text").value;
  page.reading = null;
  if (!state.library.views.read) return;
  $("bits").hidden = !text.trim();
  if (!text.trim()) return;
  const answer = await readBits(text, shown);
  if (!answer) return;
  page.reading = { shown, columns: answer.columns };
  const values = answer.columns.map((column) => column.bits_per_byte);
  const most = Math.max(...values), least = Math.min(...values);
  $("bars").replaceChildren(...shown.map((column, place) => el("div", {
    className: `bar${values[place] === least ? " best" : ""}`,
  },
  el("span", { className: `name code${column.mine ? " yours" : ""}`, title: column.label }, column.label),
  el("div", { className: "line" }, el("i", { "--w": values[place] / most })),
  el("span", { className: "value" }, fixed(values[place], 3)),
  el("span", { className: "change" }, place ? signed(values[place] - values[0], 2) : ""))));
}

let waiting = 0;
function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(refresh, PAUSE);
}

async function refresh() {
  const shown = columns();
  for (const button of $("examples").children) {
    button.setAttribute("aria-pressed", String($("text").value === EXAMPLES[button.lang]));
  }
  await guarded(async () => {
    await showBits(shown);
    await open?.update?.(shown);
  });
}

/** Run something that asks the server; what goes wrong is said below the tabs. */
async function guarded(work) {
  $("problem").hidden = true;
  try {
    await work();
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

// ── tabs ────────────────────────────────────────────────────────────────────────────────────────

const page = {
  state, api, newest, written, columns, mine, changed, guarded, adapter, setWeight,
  text: () => $("text").value,
  textLanguage: () => state.textLanguage,
  select: (language, domain) => { $("language").value = language; $("domain").value = domain; changed(); },
  reload: async () => { await load(); changed(); },
  reading: null,
};
let views = [], open = null;

function choose(view, focus) {
  open = view;
  $("over").hidden = !view.ofText;
  for (const one of views) {
    one.tab.setAttribute("aria-selected", String(one === view));
    one.tab.tabIndex = one === view ? 0 : -1;
    one.panel.hidden = one !== view;
  }
  if (focus) view.tab.focus();
  view.tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  guarded(async () => view.update?.(columns(), true));
}

function showTabs() {
  const text = textViews(page).filter((view) => state.library.views[view.id]);
  const more = libraryViews(page).filter((view) => view.id !== "matrix" || state.library.matrix.length);
  for (const view of text) view.ofText = true;
  views = [...text, ...more];
  for (const view of views) {
    view.tab = el("button", {
      type: "button", role: "tab", id: `tab-${view.id}`, "aria-controls": `panel-${view.id}`,
      onclick: () => choose(view),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) choose(views[(views.indexOf(view) + step + views.length) % views.length], true);
      },
    }, view.title);
    view.panel = el("section", {
      id: `panel-${view.id}`, role: "tabpanel", "aria-labelledby": `tab-${view.id}`, hidden: true,
    }, view.make());
  }
  const between = text.length ? [el("span", { className: "gap", role: "presentation" })] : [];
  $("tabs").replaceChildren(...text.map((view) => view.tab), ...between, ...more.map((view) => view.tab));
  $("panels").replaceChildren(...views.map((view) => view.panel));
  choose(views[0]);
}

// ── beginning ───────────────────────────────────────────────────────────────────────────────────

async function load() {
  state.library = await api("library");
  const { backbone, adapters, library } = state.library;
  for (const name of [...state.weights.keys()]) if (!adapter(name)) state.weights.delete(name);
  $("backbone").textContent = `${backbone.name} · ${backbone.kind} · ${adapters.length} adapters in ${library}/`;
  $("filter").hidden = adapters.length < 24;
  for (const kind of ["language", "domain"]) {
    const before = $(kind).value;
    const names = adapters.filter((info) => info.kind === kind).map((info) => info.name);
    $(kind).replaceChildren(el("option", { value: "" }, "none"), ...names.map((name) => el("option", { value: name }, name)));
    $(kind).value = names.includes(before) ? before : "";
  }
  showSliders();
  page.loaded?.();
}

function begin() {
  const { adapters } = state.library;
  const tags = Object.keys(EXAMPLES);
  const first = tags.map((tag) => adapters.find((info) => info.kind === "language" && info.language === tag)).find(Boolean);
  const domain = adapters.find((info) => info.name === "hotel") ?? adapters.find((info) => info.kind === "domain");
  $("language").value = first?.name ?? "";
  $("domain").value = domain?.name ?? "";
  if (first) setWeight(first.name, 1);
  if (domain) setWeight(domain.name, first ? 0.5 : 1);
  const known = tags.filter((tag) => adapters.some((info) => info.language === tag));
  const names = new Intl.DisplayNames("en", { type: "language" });
  const chip = (tag) => {
    let name = tag;
    try { name = new Intl.DisplayNames(tag, { type: "language" }).of(tag); } catch { name = names.of(tag); }
    return el("button", {
      type: "button", className: "plain", lang: tag, title: names.of(tag), "aria-pressed": "false",
      onclick: () => take(tag),
    }, name);
  };
  const shown = known.length ? [...known, ...["ja", "ar", "th"].filter((tag) => !known.includes(tag))] : ["en", "de", "zh", "ja", "ar", "th"];
  $("examples").replaceChildren(...shown.map(chip));
  take(first?.language in EXAMPLES ? first.language : "en", true);
}

function take(tag, atFirst) {
  state.textLanguage = tag;
  $("text").value = EXAMPLES[tag];
  $("text").lang = tag;
  const info = state.library.adapters.find((one) => one.kind === "language" && one.language === tag);
  if (!atFirst && info) {
    const before = $("language").value, weight = state.weights.get(before);
    if (weight && before !== info.name) { setWeight(before, 0); setWeight(info.name, weight); }
    $("language").value = info.name;
  }
  changed();
}

function theme() {
  const order = ["auto", "light", "dark"];
  const show = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme-name").textContent = name[0].toUpperCase() + name.slice(1);
    $("theme").setAttribute("aria-label", `Colours: ${name}`);
  };
  let now = localStorage.getItem("theme") ?? "auto";
  show(order.includes(now) ? now : "auto");
  $("theme").addEventListener("click", () => {
    now = order[(order.indexOf(now) + 1) % order.length];
    localStorage.setItem("theme", now);
    show(now);
  });
}

async function main() {
  theme();
  const narrow = matchMedia("(max-width: 52rem)");
  const fold = () => { $("sliders-box").open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
  $("text").addEventListener("input", () => { $("text").lang = state.textLanguage = ""; changed(); });
  for (const id of ["language", "domain"]) $(id).addEventListener("change", changed);
  $("filter").addEventListener("input", showSliders);
  $("reset").addEventListener("click", () => {
    for (const name of [...state.weights.keys()]) setWeight(name, 0);
    changed();
  });
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(written(mine()));
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1200);
  });
  await guarded(async () => {
    await load();
    begin();
    showTabs();
  });
}

main();
