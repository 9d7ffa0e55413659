"use strict";
(() => {
  const rows = [...document.querySelectorAll("tbody tr")];
  function filter() {
    const words = document.getElementById("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const unlike = document.getElementById("unlike").checked;
    let count = 0;
    for (const row of rows) {
      row.hidden = (unlike && !row.classList.contains("parts")) || !words.every((word) => row.dataset.text.includes(word));
      count += !row.hidden;
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length} scenarios`;
  }
  const form = document.getElementById("filters");
  for (const kind of ["input", "change"]) form.addEventListener(kind, filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
