//! What templates there are, for people and programs.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use casemate_config::Config;
use casemate_sandbox::template::{Header, Key, Listed, Store};
use serde_json::{Value, json};

use super::fit;
use crate::arguments::Format;

/// # Errors
/// When the store cannot be read.
pub(super) fn list(config: &Config, store: &Store, format: Format) -> Result<ExitCode> {
    let fitting = fitting(config);
    let rows: Vec<Row> = store
        .list()?
        .into_iter()
        .map(|template| Row::of(template, fitting.as_ref()))
        .collect();
    match format {
        Format::Json => {
            let failures: Vec<Value> = store.failures()?.iter().map(failure).collect();
            let list: Vec<Value> = rows.iter().map(Row::json).collect();
            let all = json!({ "directory": store.root(), "templates": list, "failures": failures });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Format::Table => {
            print!("{}", table(&rows));
            for failure in store.failures()? {
                eprintln!("{} could not be made: {}", failure.key, failure.reason);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn failure(failure: &casemate_sandbox::template::Failure) -> Value {
    json!({ "key": failure.key.as_str(), "reason": failure.reason, "at": seconds(failure.when) })
}

/// # Errors
/// When it is not as it was made.
pub(super) fn one(config: &Config, store: &Store, key: &Key, format: Format) -> Result<ExitCode> {
    let mut list = store.list()?.into_iter();
    let template = list.find(|template| template.key == *key);
    let template = template.ok_or_else(|| anyhow::anyhow!("{key} has just been removed"))?;
    let verdict = match &template.header {
        Ok(header) => store.verify(header).map_err(|unfit| unfit.to_string()),
        Err(unfit) => Err(unfit.to_string()),
    };
    let row = Row::of(template, fitting(config).as_ref());
    match format {
        Format::Json => {
            let mut all = row.json();
            all["header"] = json!(row.header);
            all["verified"] = json!(verdict.is_ok());
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Format::Table => print!("{}", page(&row, &verdict)),
    }
    Ok(ExitCode::from(u8::from(verdict.is_err())))
}

/// Key of the template that fits the present configuration; none where no machine
/// can be made at all.
fn fitting(config: &Config) -> Option<Key> {
    fit(config).ok().map(|(_, fit)| fit.key().clone())
}

/// A template as it is shown.
struct Row {
    key: Key,
    header: Option<Header>,
    used: SystemTime,
    bytes: u64,
    /// "fits", or why not.
    state: String,
}

impl Row {
    fn of(template: Listed, fitting: Option<&Key>) -> Self {
        let state = match &template.header {
            Err(unfit) => unfit.to_string(),
            Ok(header) if !header.ground.holds() => "stale".to_owned(),
            Ok(header) if Some(&header.key) == fitting => "fits".to_owned(),
            Ok(_) => "fits other machines".to_owned(),
        };
        Self {
            key: template.key,
            header: template.header.ok(),
            used: template.used,
            bytes: template.bytes,
            state,
        }
    }

    fn json(&self) -> Value {
        json!({
            "key": self.key.as_str(),
            "state": self.state,
            "bytes": self.bytes,
            "used": seconds(self.used),
            "created": self.header.as_ref().map(|header| header.created_s),
            "vcpus": self.header.as_ref().map(|header| header.vcpus),
            "memoryMib": self.header.as_ref().map(|header| header.memory_mib),
            "tookMs": self.header.as_ref().map(|header| header.took_ms),
        })
    }

    fn cells(&self) -> [String; 7] {
        let of_header = |cell: &dyn Fn(&Header) -> String| {
            self.header.as_ref().map_or_else(|| "-".to_owned(), cell)
        };
        [
            self.key.to_string(),
            of_header(&|header| age(UNIX_EPOCH + Duration::from_secs(header.created_s))),
            age(self.used),
            of_header(&|header| header.vcpus.to_string()),
            of_header(&|header| format!("{} MiB", header.memory_mib)),
            mib(self.bytes),
            self.state.clone(),
        ]
    }
}

fn table(rows: &[Row]) -> String {
    let heads = ["KEY", "AGE", "USED", "VCPUS", "MEMORY", "SIZE", "STATE"].map(String::from);
    let rows: Vec<_> = std::iter::once(heads)
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            text += &format!("{cell:<width$}   ");
        }
        text += &row[6];
        text.push('\n');
    }
    text
}

fn page(row: &Row, verdict: &Result<(), String>) -> String {
    let mut text = String::new();
    let mut say = |what: &str, value: String| text += &format!("{what:<10} {value}\n");
    say("key", row.key.to_string());
    say("state", row.state.clone());
    let verified = match verdict {
        Ok(()) => "as it was made".to_owned(),
        Err(unfit) => format!("not usable: {unfit}"),
    };
    say("contents", verified);
    say("size", mib(row.bytes));
    say("used", format!("{} ago", age(row.used)));
    let Some(header) = &row.header else {
        return text;
    };
    let created = UNIX_EPOCH + Duration::from_secs(header.created_s);
    say(
        "made",
        format!(
            "{} ago by {}, in {} ms, {} of them for a clone on trial",
            age(created),
            header.made_by,
            header.took_ms,
            header.trial_ms
        ),
    );
    say(
        "machine",
        format!("{} processors, {} MiB", header.vcpus, header.memory_mib),
    );
    say(
        "kernel",
        format!(
            "{} sha256 {}",
            header.ground.kernel.path.display(),
            header.kernel_sha256
        ),
    );
    say(
        "initrd",
        format!(
            "{} sha256 {}",
            header.ground.initrd.path.display(),
            header.initrd_sha256
        ),
    );
    text += "fits\n";
    for line in header.fits.lines() {
        text += &format!("  {line}\n");
    }
    text
}

/// "3m 20s", and no more than the two largest units.
fn age(since: SystemTime) -> String {
    let seconds = since.elapsed().unwrap_or_default().as_secs();
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// "12.3 MiB".
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_has_its_line() {
        let row = Row {
            key: "0123456789abcdef".parse().unwrap(),
            header: None,
            used: SystemTime::now() - Duration::from_secs(3 * 3600 + 120 + 5),
            bytes: 3 << 19,
            state: "its header is damaged".to_owned(),
        };
        let text = table(std::slice::from_ref(&row));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("KEY                AGE"), "{text}");
        let columns =
            "0123456789abcdef   -     3h 2m   -       -        1.5 MiB   its header is damaged";
        assert_eq!(lines[1], columns);
        assert!(
            page(&row, &Err("damaged".to_owned())).contains("contents   not usable: damaged\n")
        );
        assert_eq!(row.json()["bytes"], 3 << 19);
    }
}
