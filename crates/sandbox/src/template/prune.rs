//! What goes: what dead makers have left, templates that no machine can begin
//! from any more, and the least recently used beyond the limit.

use std::fs;

use super::{
    fit::Key,
    store::{Error, LOG, Listed, NEW, Store, failed},
    workplace::Workplace,
};

/// Bytes of the makers' log before it begins anew: some thousand templates.
const LONGEST_LOG: u64 = 128 << 10;

/// Why a template went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The host was started anew, kernel or initrd are others, or it is another
    /// release's.
    Stale,
    /// It is not as it was made.
    Damaged,
    /// There was no room for it.
    NoRoom,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stale => "no machine begins like this any more",
            Self::Damaged => "damaged",
            Self::NoRoom => "template.limit_mib",
        })
    }
}

/// A template that has been removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Which.
    pub key: Key,
    /// Why.
    pub reason: Reason,
    /// How many bytes it took.
    pub bytes: u64,
}

impl Store {
    /// Removes what nobody needs, and what is beyond `limit` bytes; `kept` is the
    /// last to go.
    ///
    /// # Errors
    /// When something that should go is still there.
    pub fn prune(&self, limit: u64, kept: Option<&Key>) -> Result<Vec<Pruned>, Error> {
        self.bury()?;
        let names = self.names()?;
        for name in names.iter().filter(|name| name.starts_with(NEW)) {
            Workplace::sweep(&self.root().join(name))?;
        }
        self.shorten_log()?;
        for failure in self.failures()?.iter().filter(|one| one.is_over()) {
            self.forget_failure(&failure.key)?;
        }
        let mut pruned = Vec::new();
        for (template, reason) in to_remove(self.list()?, limit, kept) {
            if self.remove(&template.key)? {
                pruned.push(Pruned {
                    key: template.key,
                    reason,
                    bytes: template.bytes,
                });
            }
        }
        Ok(pruned)
    }
}

impl Store {
    /// Begins the makers' log anew when it has become long.
    fn shorten_log(&self) -> Result<(), Error> {
        let path = self.root().join(LOG);
        match fs::metadata(&path) {
            // Who writes to it meanwhile goes on doing so, unseen.
            Ok(log) if log.len() > LONGEST_LOG => fs::remove_file(&path).map_err(failed(&path)),
            _ => Ok(()),
        }
    }
}

/// Those of `list` that go. It begins with the one that was used last.
fn to_remove(mut list: Vec<Listed>, limit: u64, kept: Option<&Key>) -> Vec<(Listed, Reason)> {
    list.sort_by_key(|template| Some(&template.key) != kept);
    let mut sum = 0;
    let judged = list.into_iter().map(|template| {
        let reason = match &template.header {
            Err(_) => Some(Reason::Damaged),
            Ok(header) if !header.ground.holds() => Some(Reason::Stale),
            Ok(_) if sum + template.bytes > limit => Some(Reason::NoRoom),
            Ok(_) => None,
        };
        if reason.is_none() {
            sum += template.bytes;
        }
        (template, reason)
    });
    judged
        .filter_map(|(template, reason)| Some((template, reason?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::template::{
        fit::{Fit, Ground},
        header::{Bad, tests::header},
        store::Unfit,
    };

    fn listed(recipe: &str, bytes: u64) -> Listed {
        let fit = Fit::new(Ground::fake(), recipe);
        Listed {
            key: fit.key().clone(),
            header: Ok(header(&fit)),
            used: SystemTime::now(),
            bytes,
        }
    }

    #[test]
    fn the_least_recently_used_make_room() {
        let list = || {
            vec![
                listed("a", 3),
                listed("b", 4),
                listed("c", 2),
                listed("d", 1),
            ]
        };
        let key = |place: usize| list()[place].key.clone();
        let gone = |limit, kept: Option<&Key>| -> Vec<Key> {
            let gone = to_remove(list(), limit, kept).into_iter();
            gone.map(|(template, reason)| {
                assert_eq!(reason, Reason::NoRoom);
                template.key
            })
            .collect()
        };
        assert_eq!(gone(10, None), []);
        assert_eq!(gone(9, None), [key(3)]);
        // What fits behind a large one stays.
        assert_eq!(gone(6, None), [key(1)]);
        assert_eq!(gone(4, Some(&key(1))), [key(0), key(2), key(3)]);
        assert_eq!(gone(0, Some(&key(1))).len(), 4);
    }

    #[test]
    fn what_cannot_be_used_goes_whatever_the_limit() {
        let mut damaged = listed("a", 1);
        damaged.header = Err(Unfit::Header(Bad::Damaged));
        let mut stale = listed("b", 1);
        if let Ok(header) = &mut stale.header {
            header.ground.boot = "of last week".to_owned();
        }
        let gone = to_remove(vec![damaged, stale, listed("c", 1)], u64::MAX, None);
        let reasons: Vec<_> = gone.into_iter().map(|(_, reason)| reason).collect();
        assert_eq!(reasons, [Reason::Damaged, Reason::Stale]);
    }
}
