//! Charts as SVG: a horizontal bar for each median, with a mark at the 95th percentile.
//! They have no background and take their colours from what the reader prefers, so that
//! they can be read on light and on dark pages.

use std::fmt::Write as _;

use crate::report::{Row, Table, shown};

const WIDTH: f64 = 760.0;
/// Where bars begin; names are left of it.
const LEFT: f64 = 250.0;
/// Room right of the longest bar for its number.
const RIGHT: f64 = 90.0;
const LINE: f64 = 24.0;
const BAR: f64 = 14.0;
const TITLE: f64 = 38.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}\
.title{font-weight:600}.bar{fill:#8c959f}.ours{fill:#0969da}.mark{stroke:#59636e;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bar{fill:#6e7681}.ours{fill:#58a6ff}\
.mark{stroke:#b1bac4}}";

/// All tables, one below the other.
pub(crate) fn draw(tables: &[Table]) -> String {
    let height: f64 = tables.iter().map(height).sum::<f64>() + LINE / 2.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<style>{STYLE}</style>\n"
    );
    let mut top = 0.0;
    for table in tables {
        draw_table(&mut svg, table, top);
        top += self::height(table);
    }
    svg + "</svg>\n"
}

fn height(table: &Table) -> f64 {
    TITLE + LINE * table.rows.len() as f64
}

fn draw_table(svg: &mut String, table: &Table, top: f64) {
    let longest = |row: &Row| row.samples.p95().max(row.samples.median());
    let most = table.rows.iter().map(longest).fold(0.0, f64::max);
    let scale = if most > 0.0 {
        (WIDTH - LEFT - RIGHT) / most
    } else {
        0.0
    };
    let title = escaped(&format!("{}, {}", table.title, table.unit));
    let _ = writeln!(
        svg,
        "<text class=\"title\" x=\"8\" y=\"{}\">{title}</text>",
        top + 26.0
    );
    for (index, row) in table.rows.iter().enumerate() {
        draw_row(svg, row, top + TITLE + LINE * index as f64, scale);
    }
}

fn draw_row(svg: &mut String, row: &Row, top: f64, scale: f64) {
    let (median, p95) = (row.samples.median(), row.samples.p95());
    let [length, mark] = [median, p95].map(|number| (number * scale).max(1.0));
    let class = if row.name.contains("casemate") {
        "ours"
    } else {
        "bar"
    };
    let middle = top + 15.0;
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
         <rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>",
        LEFT - 8.0,
        escaped(&row.name),
        top + 4.0,
    );
    if row.samples.all().len() > 1 {
        let x = LEFT + mark;
        let _ = writeln!(
            svg,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{}\"/>",
            top + 4.0,
            top + 4.0 + BAR
        );
    }
    let number = LEFT + length.max(mark) + 6.0;
    let _ = writeln!(
        svg,
        "<text x=\"{number:.1}\" y=\"{middle}\">{}</text>",
        shown(median)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Samples;

    #[test]
    fn every_row_has_its_bar_to_scale() {
        let rows = vec![
            Row::one("casemate", 2.0),
            Row {
                name: "a<b".to_owned(),
                samples: Samples::new(vec![1.0, 1.0, 4.0]).unwrap(),
            },
        ];
        let svg = draw(&[Table::new("start & end", "s", rows)]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("start &amp; end, s"), "{svg}");
        assert!(svg.contains("a&lt;b"), "{svg}");
        // The longest mark has all the room, the medians their part of it.
        let room = WIDTH - LEFT - RIGHT;
        assert!(
            svg.contains(&format!("width=\"{:.1}\"", room / 2.0)),
            "{svg}"
        );
        assert!(
            svg.contains(&format!("width=\"{:.1}\"", room / 4.0)),
            "{svg}"
        );
        assert!(svg.contains(&format!("x1=\"{:.1}\"", LEFT + room)), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!(svg.matches("<line").count(), 1);
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert!(!draw(&[]).contains("<rect"));
        let svg = draw(&[Table::new("x", "s", vec![Row::one("a", 0.0)])]);
        assert!(svg.contains("width=\"1.0\""), "{svg}");
    }
}
