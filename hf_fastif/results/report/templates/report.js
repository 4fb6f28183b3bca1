const filter = document.querySelector(".filter");
const [search, wrongOnly] = filter.querySelectorAll("input");
const cards = [...document.querySelectorAll(".card[data-verdict]")];
const words = new Map(cards.map(card => [card, card.textContent.toLowerCase()]));
function show() {
  const wanted = search.value.toLowerCase();
  for (const card of cards) {
    const fits = words.get(card).includes(wanted);
    card.hidden = !fits || (wrongOnly?.checked && card.dataset.verdict !== "wrong");
  }
  filter.querySelector("output").value = `${cards.filter(card => !card.hidden).length} of ${cards.length} queries`;
}
filter.addEventListener("input", show);
filter.addEventListener("submit", event => event.preventDefault());
filter.hidden = cards.length < 2;
show();

const tabs = [...document.querySelectorAll(".tabs [role=tab]")];
function openTab(name, focused = false) {
  for (const tab of tabs) {
    const panel = document.getElementById(tab.getAttribute("aria-controls")), chosen = panel.id === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    panel.setAttribute("role", "tabpanel");
    panel.hidden = !chosen;
    if (chosen && focused) tab.focus();
  }
}
function chooseTab(name) {
  openTab(name, true);
  try {
    history.replaceState(null, "", `#${name}`);
  } catch {} // a page in a frame may not have an address to change
}
document.querySelector(".tabs").addEventListener("click", event => {
  const tab = event.target.closest("[role=tab]");
  if (tab) chooseTab(tab.getAttribute("aria-controls"));
});
document.querySelector(".tabs").addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity}[event.key];
  if (!step) return;
  const here = tabs.indexOf(document.activeElement), last = tabs.length - 1;
  const next = Number.isFinite(step) ? (here + step + tabs.length) % tabs.length : step > 0 ? last : 0;
  chooseTab(tabs[next].getAttribute("aria-controls"));
  event.preventDefault();
});
document.querySelector(".tabs").hidden = false;

function makeButton(text, act, className = "link") {
  const made = document.createElement("button");
  Object.assign(made, {type: "button", textContent: text, className});
  made.addEventListener("click", act);
  return made;
}
function openQuery(query) {
  search.value = "";
  if (wrongOnly) wrongOnly.checked = false;
  show();
  openTab("queries");
  const heading = document.getElementById(`query-${query}`);
  heading.tabIndex = -1;
  heading.focus();
  heading.scrollIntoView();
}
for (const list of document.querySelectorAll(".query-links")) {
  const queries = list.dataset.queries.split(" ");
  list.replaceChildren(...queries.flatMap((query, i) => [i ? ", " : "", makeButton(query, () => openQuery(query))]));
}
const named = location.hash.slice(1);
openTab(tabs.some(tab => tab.getAttribute("aria-controls") === named) ? named : "queries");
