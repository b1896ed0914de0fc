//! What was measured: tables for people, JSON for programs, charts.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::options::Common;
use crate::{Samples, chart};

/// One thing that was measured.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// Its numbers, in the table's unit.
    pub samples: Samples,
}

impl Row {
    /// A number that was measured once.
    pub fn one(name: &str, number: f64) -> Self {
        Self {
            name: name.to_owned(),
            samples: Samples::one(number),
        }
    }
}

/// Things of one unit that were measured beside each other.
#[derive(Debug, Clone)]
pub struct Table {
    /// What was measured.
    pub title: String,
    /// "s", "MiB", "1/s" …
    pub unit: &'static str,
    /// The things; the first is what others are compared with.
    pub rows: Vec<Row>,
}

impl Table {
    /// A table.
    pub fn new(title: &str, unit: &'static str, rows: Vec<Row>) -> Self {
        Self {
            title: title.to_owned(),
            unit,
            rows,
        }
    }

    /// How many times the first one's median that of a row is.
    pub fn ratio(&self, row: &Row) -> f64 {
        let base = self.rows[0].samples.median();
        if base == 0.0 {
            return f64::NAN;
        }
        row.samples.median() / base
    }

    /// For people.
    pub fn text(&self) -> String {
        let Some(first) = self.rows.first() else {
            return String::new();
        };
        if self.is_single() {
            return self.single_text(first);
        }
        let width = |row: &Row| row.name.chars().count();
        let widest = self.rows.iter().map(width).max().unwrap_or(0).max(24);
        let mut text = format!(
            "{}, {}\n{:widest$} {:>10} {:>10} {:>10} {:>9}  (x {})\n",
            self.title, self.unit, "", "median", "p95", "least", "ratio", first.name
        );
        for row in &self.rows {
            let samples = &row.samples;
            let cells = [samples.median(), samples.p95(), samples.least()];
            let cells = cells
                .map(|number| format!("{:>10}", shown(number)))
                .join(" ");
            let ratio = shown_ratio(self.ratio(row));
            text += &format!("{:widest$} {cells} {ratio:>9}\n", row.name);
        }
        text
    }

    /// Whether everything in it was measured once.
    fn is_single(&self) -> bool {
        self.rows.iter().all(|row| row.samples.all().len() == 1)
    }

    fn single_text(&self, first: &Row) -> String {
        let width = |row: &Row| row.name.chars().count();
        let widest = self.rows.iter().map(width).max().unwrap_or(0).max(24);
        let mut text = format!(
            "{}, {}\n{:widest$} {:>10} {:>9}  (x {})\n",
            self.title, self.unit, "", "", "ratio", first.name
        );
        for row in &self.rows {
            let ratio = shown_ratio(self.ratio(row));
            let number = shown(row.samples.median());
            text += &format!("{:widest$} {number:>10} {ratio:>9}\n", row.name);
        }
        text
    }

    /// For documents.
    pub fn markdown(&self) -> String {
        let Some(first) = self.rows.first() else {
            return String::new();
        };
        let single = self.is_single();
        let heads = ["| median | p95 | least |", "| |"][usize::from(single)];
        let lines = ["---:|---:|---:|", "---:|"][usize::from(single)];
        let mut text = format!(
            "| {}, {} {heads} × {} |\n|---|{lines}---:|\n",
            self.title, self.unit, first.name
        );
        for row in &self.rows {
            let samples = &row.samples;
            if single {
                let number = shown(samples.median());
                let ratio = shown_ratio(self.ratio(row));
                text += &format!("| {} | {number} | {ratio} |\n", row.name);
                continue;
            }
            text += &format!(
                "| {} | {} | {} | {} | {} |\n",
                row.name,
                shown(samples.median()),
                shown(samples.p95()),
                shown(samples.least()),
                shown_ratio(self.ratio(row)),
            );
        }
        text
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let samples = &row.samples;
            json!({
                "name": row.name,
                "median": samples.median(),
                "p95": samples.p95(),
                "least": samples.least(),
                "most": samples.most(),
                "ratio": self.ratio(row),
                "samples": samples.all(),
            })
        };
        json!({
            "title": self.title,
            "unit": self.unit,
            "baseline": self.rows.first().map(|row| &row.name),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    fn from_json(told: &Value) -> Option<Self> {
        let row = |row: &Value| {
            let samples = row["samples"].as_array()?.iter().map(Value::as_f64);
            Some(Row {
                name: row["name"].as_str()?.to_owned(),
                samples: Samples::new(samples.collect::<Option<_>>()?)?,
            })
        };
        let known = ["s", "ms", "MiB", "1/s", "%", "MiB/s", "Gbit/s"];
        Some(Self {
            title: told["title"].as_str()?.to_owned(),
            unit: known.into_iter().find(|unit| told["unit"] == *unit)?,
            rows: told["rows"]
                .as_array()?
                .iter()
                .map(row)
                .collect::<Option<_>>()?,
        })
    }
}

/// Prints; that nobody reads any more is an error like others.
fn told(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")
}

/// All of one measurement.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which one: "start".
    pub measurement: &'static str,
    /// Its tables.
    pub tables: Vec<Table>,
    /// What was not measured, each with the reason.
    pub left_out: Vec<(String, String)>,
}

impl Report {
    /// Whether the files that the options name can be written: before the long wait.
    pub(crate) fn check(common: &Common) -> Result<()> {
        let files = [&common.json, &common.svg].into_iter().flatten();
        for file in files.filter(|file| file.as_path() != Path::new("-")) {
            let opened = fs::OpenOptions::new().append(true).create(true).open(file);
            opened.with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// Prints it, and writes the files that the options name.
    pub(crate) fn show(&self, common: &Common) -> Result<()> {
        let to_output = common.json.as_deref() == Some(Path::new("-"));
        if to_output {
            told(&(serde_json::to_string_pretty(&self.json())? + "\n"))?;
        } else {
            told(&self.text())?;
        }
        if let Some(file) = common.json.as_deref().filter(|_| !to_output) {
            let text = serde_json::to_string_pretty(&self.json())? + "\n";
            fs::write(file, text).with_context(|| file.display().to_string())?;
        }
        if let Some(file) = &common.svg {
            let drawn = chart::draw(&self.tables);
            fs::write(file, drawn).with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut parts: Vec<String> = self.tables.iter().map(Table::text).collect();
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|(name, reason)| format!("left out: {name}: {reason}\n"));
        parts.extend(Some(left_out.collect::<String>()).filter(|text| !text.is_empty()));
        parts.join("\n")
    }

    fn json(&self) -> Value {
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|(name, reason)| json!({ "name": name, "reason": reason }));
        json!({
            "measurement": self.measurement,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
            "leftOut": left_out.collect::<Vec<_>>(),
        })
    }
}

/// The tables of a report that was written as JSON; none when it is no such report.
pub fn tables_of(report: &Value) -> Option<Vec<Table>> {
    report["tables"]
        .as_array()?
        .iter()
        .map(Table::from_json)
        .collect()
}

/// Three digits that count, and none that do not.
pub(crate) fn shown(number: f64) -> String {
    let places = match number.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 4,
    };
    format!("{number:.places$}")
}

fn shown_ratio(ratio: f64) -> String {
    if ratio.is_nan() {
        return "-".to_owned();
    }
    format!("{ratio:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let rows = vec![
            Row {
                name: "bare".to_owned(),
                samples: Samples::new(vec![0.5, 0.4, 0.6]).unwrap(),
            },
            Row::one("casemate", 0.75),
        ];
        Report {
            measurement: "start",
            tables: vec![Table::new("whole start", "s", rows)],
            left_out: vec![("crun".to_owned(), "not installed".to_owned())],
        }
    }

    #[test]
    fn people_see_everything_and_what_is_missing() {
        let text = report().text();
        assert!(text.starts_with("whole start, s\n"), "{text}");
        assert!(
            text.contains("0.5000     0.6000     0.4000      1.00"),
            "{text}"
        );
        assert!(text.contains("1.50"), "{text}");
        assert!(text.ends_with("left out: crun: not installed\n"), "{text}");
        let markdown = report().tables[0].markdown();
        assert!(markdown.contains("| casemate | 0.7500 | 0.7500 | 0.7500 | 1.50 |"));
        let once = Table::new(
            "weight",
            "MiB",
            vec![Row::one("a", 2.0), Row::one("b", 3.0)],
        );
        assert!(
            once.text()
                .ends_with("b                              3.00      1.50\n")
        );
        assert!(
            once.markdown()
                .ends_with("|---|---:|---:|\n| a | 2.00 | 1.00 |\n| b | 3.00 | 1.50 |\n")
        );
    }

    #[test]
    fn what_programs_are_told_can_be_read_back() {
        let told = report().json();
        assert_eq!(told["tables"][0]["rows"][1]["ratio"], 1.5);
        let tables = tables_of(&told).unwrap();
        assert_eq!(tables[0].text(), report().tables[0].text());
        assert!(tables_of(&json!({})).is_none());
        assert!(tables_of(&json!({ "tables": [{ "title": "x" }] })).is_none());
    }

    #[test]
    fn numbers_are_as_long_as_they_are_exact() {
        let shown = [123.4, 12.34, 1.234, 0.1234, 0.0].map(shown);
        assert_eq!(shown, ["123", "12.3", "1.23", "0.1234", "0.0000"]);
        assert_eq!(shown_ratio(f64::NAN), "-");
    }
}
