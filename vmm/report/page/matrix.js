"use strict";
(() => {
  const rows = [...document.querySelectorAll("tbody tr")];
  function filter() {
    const words = document.getElementById("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const unlike = document.getElementById("unlike").checked;
    let count = 0;
    for (const row of rows) {
      row.hidden =
        (unlike && !row.classList.contains("parts")) ||
        !words.every((word) => row.dataset.text.includes(word));
      count += !row.hidden;
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length} scenarios`;
  }
  const form = document.getElementById("filters");
  for (const kind of ["input", "change"]) form.addEventListener(kind, filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // A shadow lies at an end where there is more, since a phone shows no scroll bar.
  const table = document.querySelector(".table");
  function shade() {
    const left = table.scrollLeft > 1;
    const right = table.scrollLeft + table.clientWidth < table.scrollWidth - 1;
    table.parentElement.classList.toggle("left", left);
    table.parentElement.classList.toggle("right", right);
    table.parentElement.style.setProperty("--names", `${table.querySelector("th").offsetWidth}px`);
  }
  table.addEventListener("scroll", shade, { passive: true });
  addEventListener("resize", shade);
  shade();
})();
