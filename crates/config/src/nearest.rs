//! The known name nearest to one that is unknown.

use crate::keys::definitions;

/// The table nearest to `name`, or the key if `name` is one outside its table.
pub(crate) fn nearest_table_or_key(name: &str) -> Option<String> {
    let tables = definitions().into_iter().map(|table| table.name.to_owned());
    closest(name, tables.map(|table| (table.clone(), table)))
        .or_else(|| closest(name, keys_by_bare_name()))
}

/// The key nearest to `key`: of its own table if there is one, else of any.
pub(crate) fn nearest_key(table: &str, key: &str) -> Option<String> {
    let in_table = keys_by_bare_name().filter(|(_, full)| full.split('.').next() == Some(table));
    closest(key, in_table).or_else(|| closest(key, keys_by_bare_name()))
}

/// Every key's bare name with its full one.
fn keys_by_bare_name() -> impl Iterator<Item = (String, String)> {
    definitions().into_iter().flat_map(|table| {
        let full = move |key: &str| (key.to_owned(), format!("{}.{key}", table.name));
        table.keys.into_iter().map(move |key| full(key.name))
    })
}

/// The second part of the candidate whose first part is nearest to `name`, if
/// it is near enough to be a slip rather than another word.
fn closest(name: &str, candidates: impl Iterator<Item = (String, String)>) -> Option<String> {
    candidates
        .map(|(candidate, answer)| (distance(name, &candidate), answer))
        .filter(|(distance, _)| *distance <= name.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, answer)| answer)
}

/// The edit distance of Levenshtein, with a swap of two neighbours as one edit.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut current = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let replaced = previous[j] + usize::from(a != b);
            let mut edits = replaced.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                edits = edits.min(before[j - 1] + 1);
            }
            current.push(edits);
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_and_swaps() {
        let cases = [
            ("", "", 0),
            ("vcpus", "vcpus", 0),
            ("vcpu", "vcpus", 1),
            ("memroy_mib", "memory_mib", 1),
            ("", "log", 3),
            ("kernel", "initrd", 6),
        ];
        for (left, right, expected) in cases {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn a_key_is_sought_in_its_own_table_first() {
        assert_eq!(
            nearest_key("agent", "timeout"),
            Some("agent.timeout_s".into())
        );
        assert_eq!(nearest_key("vmm", "vcpu"), Some("machine.vcpus".into()));
        assert_eq!(nearest_key("vmm", "colour"), None);
    }

    #[test]
    fn a_key_outside_its_table_is_found() {
        assert_eq!(nearest_table_or_key("machin"), Some("machine".into()));
        assert_eq!(
            nearest_table_or_key("memory_mib"),
            Some("machine.memory_mib".into())
        );
        assert_eq!(nearest_table_or_key("zzz"), None);
    }
}
