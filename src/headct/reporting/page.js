(function () {
  "use strict";
  var numeric = function (text) {
    var value = parseFloat(text.replace(/,/g, ""));
    return isNaN(value) ? null : value;
  };

  function sortBy(table, index, header) {
    var body = table.tBodies[0];
    var down = header.getAttribute("aria-sort") === "ascending";
    var asNumber = header.classList.contains("number");
    var rows = Array.prototype.map.call(body.rows, function (row) {
      var text = row.cells[index].textContent.trim();
      return { row: row, key: asNumber ? numeric(text) : text === "–" ? null : text };
    });
    rows.sort(function (a, b) {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      var order = asNumber ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
      return down ? -order : order;
    });
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (cell) { cell.removeAttribute("aria-sort"); });
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach(function (entry) { body.appendChild(entry.row); });
  }

  function asText(table) {
    return Array.prototype.map.call(table.rows, function (row) {
      return Array.prototype.map.call(row.cells, function (cell) {
        return cell.textContent.trim().replace(/\s+/g, " ");
      }).join("\t");
    }).join("\n");
  }

  function select(table) {
    var range = document.createRange();
    range.selectNodeContents(table);
    var selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }

  function copyButton(table) {
    var button = document.createElement("button");
    var said = function (words) { button.textContent = words; };
    button.type = "button";
    button.className = "copy";
    button.setAttribute("aria-live", "polite");
    said("Copy table");
    button.addEventListener("click", function () {
      var selected = function () { said(select(table) ? "Copied" : "Selected: press Ctrl+C"); };
      if (!navigator.clipboard) return selected();
      navigator.clipboard.writeText(asText(table)).then(function () { said("Copied"); }, selected);
    });
    table.parentNode.parentNode.insertBefore(button, table.parentNode);
  }

  function makeSortable(table) {
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (header, index) {
      var button = document.createElement("button");
      button.type = "button";
      while (header.firstChild) button.appendChild(header.firstChild);
      header.appendChild(button);
      button.addEventListener("click", function () { sortBy(table, index, header); });
    });
  }

  function tellWhereCut(table) {
    var frame = table.parentNode;
    var hint = document.createElement("span");
    hint.className = "more";
    hint.textContent = "more columns: scroll right";
    frame.parentNode.insertBefore(hint, frame);
    var look = function () { hint.hidden = frame.scrollWidth <= frame.clientWidth + 1; };
    window.addEventListener("resize", look);
    document.addEventListener("toggle", look, true);
    look();
  }

  Array.prototype.forEach.call(document.querySelectorAll("table.sortable"), function (table) {
    makeSortable(table);
    copyButton(table);
    tellWhereCut(table);
  });

  function openAt(hash) {
    var target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
    var folded = target && target.closest("details");
    if (folded && !folded.open) {
      folded.open = true;
      target.scrollIntoView();
    }
  }
  window.addEventListener("hashchange", function () { openAt(location.hash); });
  openAt(location.hash);

  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.filter.call(document.querySelectorAll("details"), function (d) { return !d.open; });
    opened.forEach(function (d) { d.open = true; });
  });
  window.addEventListener("afterprint", function () { opened.forEach(function (d) { d.open = false; }); });
}());
