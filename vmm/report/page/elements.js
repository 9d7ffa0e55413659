// Elements of the page.
// They are made without any HTML from data.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
function draw(tag, attributes = {}, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}
const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const fact = (name, ...value) => [make("dt", {}, name), make("dd", {}, ...value)];
const mono = (text) => make("span", { class: "mono" }, text);
const rule = (name) => make("a", { href: "#rule-" + name }, name);

// What may be wider than a phone scrolls by itself, with the keyboard, too.
const sideways = (label, ...children) =>
  make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, ...children);

const PAGE = 4096n;
const hex = (gfn) => "0x" + (BigInt(gfn) * PAGE).toString(16);
