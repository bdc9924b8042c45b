"use strict";
(() => {
  const tools = document.getElementById("tools");
  const search = document.getElementById("search");
  const boxes = [...tools.querySelectorAll("input[type=checkbox]")];
  const groups = [...document.querySelectorAll(".group")];
  const empty = document.getElementById("nothing");
  tools.hidden = false;

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kinds = boxes.filter((box) => box.checked).map((box) => box.value);
    const asked = words.length > 0 || kinds.length > 0;
    let any = false;
    for (const group of groups) {
      let shown = 0;
      for (const row of group.querySelectorAll("tbody tr")) {
        const has = row.dataset.kinds.split(" ");
        const fits = words.every((word) => row.dataset.text.includes(word))
          && (kinds.length === 0 || kinds.some((kind) => has.includes(kind)));
        row.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      group.hidden = shown === 0;
      any = any || shown > 0;
      if (asked) group.open = shown > 0 && shown <= 60;
    }
    empty.hidden = any;
  }
  search.addEventListener("input", filter);
  boxes.forEach((box) => box.addEventListener("change", filter));
  document.getElementById("unfold").addEventListener("click", (event) => {
    const open = groups.some((group) => !group.hidden && !group.open);
    groups.forEach((group) => { group.open = open; });
    event.target.textContent = open ? "Fold all" : "Unfold all";
  });

  const dialog = document.getElementById("dialog");
  const place = document.getElementById("shown");
  let number = 0;
  function show(next, run) {
    const article = document.getElementById(`case-${next}`);
    if (!article) return;
    number = next;
    const copy = article.cloneNode(true);
    copy.removeAttribute("id");
    copy.querySelector(`tr[data-run="${run}"]`)?.classList.add("here");
    place.replaceChildren(copy);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-case]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !dialog.showModal) return;
    event.preventDefault();
    show(Number(link.dataset.case), link.dataset.run);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.getElementById("back").addEventListener("click", () => show(number - 1));
  document.getElementById("next").addEventListener("click", () => show(number + 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(number - 1);
    if (event.key === "ArrowRight") show(number + 1);
  });

  function reveal() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target) target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  reveal();
})();
