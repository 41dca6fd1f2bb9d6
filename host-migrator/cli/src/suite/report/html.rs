// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text, tables and figures as HTML.

/// `text` with nothing in it that HTML takes for its own.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            // XML does not allow them.
            control if control.is_control() => safe.push(' '),
            other => safe.push(other),
        }
    }
    safe
}

/// A picture with its caption, which the keyboard reaches.
pub(super) fn figure(title: &str, about: &str, svg: &str) -> String {
    format!(
        "<figure tabindex=\"0\"><figcaption><b>{}</b> {}</figcaption>\n{svg}</figure>\n",
        escaped(title),
        escaped(about)
    )
}

/// A table that opens when it is asked for. What is no number is in the first column.
pub(super) fn table(title: &str, headings: &[&str], rows: &[Vec<String>]) -> String {
    let heading = |text: &&str| format!("<th scope=\"col\">{}</th>", escaped(text));
    let cell = |text: &String| format!("<td>{}</td>", escaped(text));
    let row = |row: &Vec<String>| {
        let cells: String = row.iter().map(cell).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let headings: String = headings.iter().map(heading).collect();
    let rows: String = rows.iter().map(row).collect();
    format!(
        "<details open=\"\"><summary>{}</summary>\n<div class=\"table\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table>\n\
         <thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}</tbody></table></div></details>\n",
        escaped(title),
        escaped(title)
    )
}
