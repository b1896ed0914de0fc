//! Applies one TOML document to a configuration.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::definition::{Given, Refusal};
use crate::nearest::{nearest_key, nearest_table_or_key};
use crate::{Config, Error};

/// Sets every key that `text` has, in the order of the text, so that the first
/// mistake of the file is the one reported.
pub(crate) fn apply(config: &mut Config, path: &Path, text: &str) -> Result<(), Error> {
    let document = Document { path, text };
    let root = DeTable::parse(text).map_err(|error| document.syntax_error(&error))?;
    for (table, value) in in_text_order(root.get_ref()) {
        match value.get_ref() {
            DeValue::Table(keys) => document.apply_table(config, table, keys)?,
            _ => return Err(document.not_a_table(table, value)),
        }
    }
    Ok(())
}

struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

type Name<'a> = Spanned<DeString<'a>>;

impl Document<'_> {
    fn apply_table(
        &self,
        config: &mut Config,
        table: &Name<'_>,
        keys: &DeTable<'_>,
    ) -> Result<(), Error> {
        // An empty table sets nothing, but its name must still be known.
        if keys.is_empty() && !is_table(table.get_ref()) {
            return Err(self.unknown_table(table));
        }
        for (key, value) in in_text_order(keys) {
            config
                .assign(
                    table.get_ref(),
                    key.get_ref(),
                    &Given::Toml(value.get_ref()),
                )
                .map_err(|refusal| self.refused(refusal, table, key, value))?;
        }
        Ok(())
    }

    fn refused(
        &self,
        refusal: Refusal,
        table: &Name<'_>,
        key: &Name<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Error {
        let full_name = format!("{}.{}", table.get_ref(), key.get_ref());
        match refusal {
            Refusal::UnknownTable => self.unknown_table(table),
            Refusal::UnknownKey => Error::Unknown {
                path: self.path.to_owned(),
                line: self.line(key.span()),
                what: "key",
                nearest: nearest_key(table.get_ref(), key.get_ref()),
                name: full_name,
            },
            Refusal::Value { expected } => Error::Value {
                path: self.path.to_owned(),
                line: self.line(value.span()),
                key: full_name,
                found: self.excerpt(value.span()),
                expected,
            },
        }
    }

    fn not_a_table(&self, name: &Name<'_>, value: &Spanned<DeValue<'_>>) -> Error {
        if is_table(name.get_ref()) {
            return Error::Value {
                path: self.path.to_owned(),
                line: self.line(value.span()),
                key: name.get_ref().to_string(),
                found: self.excerpt(value.span()),
                expected: "a table".to_owned(),
            };
        }
        self.unknown("key", name, nearest_table_or_key(name.get_ref()))
    }

    fn unknown_table(&self, name: &Name<'_>) -> Error {
        self.unknown("table", name, nearest_table_or_key(name.get_ref()))
    }

    fn unknown(&self, what: &'static str, name: &Name<'_>, nearest: Option<String>) -> Error {
        Error::Unknown {
            path: self.path.to_owned(),
            line: self.line(name.span()),
            what,
            name: name.get_ref().to_string(),
            nearest,
        }
    }

    fn syntax_error(&self, error: &toml::de::Error) -> Error {
        Error::Syntax {
            path: self.path.to_owned(),
            line: self.line(error.span().unwrap_or_default()),
            message: one_line(error.message()),
        }
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }

    /// The text at `span`, short enough for an error.
    fn excerpt(&self, span: Range<usize>) -> String {
        const LONGEST: usize = 60;
        let text = one_line(self.text.get(span).unwrap_or_default());
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

fn is_table(name: &str) -> bool {
    crate::keys::definitions()
        .iter()
        .any(|table| table.name == name)
}

fn in_text_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Name<'i>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
