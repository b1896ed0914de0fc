//! The options of a mount, as mount(8) and the runtime spec name them.

/// What an option does.
#[derive(Clone, Copy)]
enum Effect {
    /// Sets MS_* flags.
    Set(u64),
    /// Clears MS_* flags that an earlier option has set.
    Clear(u64),
    /// Sets the propagation; the last one holds.
    Propagate(u64),
    /// Sets MOUNT_ATTR_* on the mount and all below it.
    SetBelow(u64),
    /// Clears them.
    ClearBelow(u64),
    /// Sets the way in which access times are kept, likewise.
    AccessTimeBelow(u64),
    /// `tmpcopyup`.
    CopyUp,
    /// `idmap` and `ridmap`.
    MapIds,
    /// Is what holds without it.
    Nothing,
}

use Effect::{
    AccessTimeBelow, Clear, ClearBelow, CopyUp, MapIds, Nothing, Propagate, Set, SetBelow,
};

const REC: u64 = libc::MS_REC;

const OPTIONS: &[(&str, Effect)] = &[
    ("async", Clear(libc::MS_SYNCHRONOUS)),
    ("atime", Clear(libc::MS_NOATIME)),
    ("bind", Set(libc::MS_BIND)),
    ("defaults", Nothing),
    ("dev", Clear(libc::MS_NODEV)),
    ("diratime", Clear(libc::MS_NODIRATIME)),
    ("dirsync", Set(libc::MS_DIRSYNC)),
    ("exec", Clear(libc::MS_NOEXEC)),
    ("iversion", Set(libc::MS_I_VERSION)),
    ("lazytime", Set(libc::MS_LAZYTIME)),
    ("loud", Clear(libc::MS_SILENT)),
    ("mand", Set(libc::MS_MANDLOCK)),
    ("noatime", Set(libc::MS_NOATIME)),
    ("nodev", Set(libc::MS_NODEV)),
    ("nodiratime", Set(libc::MS_NODIRATIME)),
    ("noexec", Set(libc::MS_NOEXEC)),
    ("noiversion", Clear(libc::MS_I_VERSION)),
    ("nolazytime", Clear(libc::MS_LAZYTIME)),
    ("nomand", Clear(libc::MS_MANDLOCK)),
    ("norelatime", Clear(libc::MS_RELATIME)),
    ("nostrictatime", Clear(libc::MS_STRICTATIME)),
    ("nosuid", Set(libc::MS_NOSUID)),
    ("nosymfollow", Set(libc::MS_NOSYMFOLLOW)),
    ("rbind", Set(libc::MS_BIND | REC)),
    ("relatime", Set(libc::MS_RELATIME)),
    ("remount", Set(libc::MS_REMOUNT)),
    ("ro", Set(libc::MS_RDONLY)),
    ("rw", Clear(libc::MS_RDONLY)),
    ("silent", Set(libc::MS_SILENT)),
    ("strictatime", Set(libc::MS_STRICTATIME)),
    ("suid", Clear(libc::MS_NOSUID)),
    ("symfollow", Clear(libc::MS_NOSYMFOLLOW)),
    ("sync", Set(libc::MS_SYNCHRONOUS)),
    ("private", Propagate(libc::MS_PRIVATE)),
    ("shared", Propagate(libc::MS_SHARED)),
    ("slave", Propagate(libc::MS_SLAVE)),
    ("unbindable", Propagate(libc::MS_UNBINDABLE)),
    ("rprivate", Propagate(libc::MS_PRIVATE | REC)),
    ("rshared", Propagate(libc::MS_SHARED | REC)),
    ("rslave", Propagate(libc::MS_SLAVE | REC)),
    ("runbindable", Propagate(libc::MS_UNBINDABLE | REC)),
    ("ratime", AccessTimeBelow(libc::MOUNT_ATTR_RELATIME)),
    ("rdev", ClearBelow(libc::MOUNT_ATTR_NODEV)),
    ("rdiratime", ClearBelow(libc::MOUNT_ATTR_NODIRATIME)),
    ("rexec", ClearBelow(libc::MOUNT_ATTR_NOEXEC)),
    ("rnoatime", AccessTimeBelow(libc::MOUNT_ATTR_NOATIME)),
    ("rnodev", SetBelow(libc::MOUNT_ATTR_NODEV)),
    ("rnodiratime", SetBelow(libc::MOUNT_ATTR_NODIRATIME)),
    ("rnoexec", SetBelow(libc::MOUNT_ATTR_NOEXEC)),
    ("rnorelatime", Nothing),
    ("rnostrictatime", AccessTimeBelow(libc::MOUNT_ATTR_RELATIME)),
    ("rnosuid", SetBelow(libc::MOUNT_ATTR_NOSUID)),
    ("rnosymfollow", SetBelow(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("rrelatime", AccessTimeBelow(libc::MOUNT_ATTR_RELATIME)),
    ("rro", SetBelow(libc::MOUNT_ATTR_RDONLY)),
    ("rrw", ClearBelow(libc::MOUNT_ATTR_RDONLY)),
    (
        "rstrictatime",
        AccessTimeBelow(libc::MOUNT_ATTR_STRICTATIME),
    ),
    ("rsuid", ClearBelow(libc::MOUNT_ATTR_NOSUID)),
    ("rsymfollow", ClearBelow(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("tmpcopyup", CopyUp),
    ("idmap", MapIds),
    ("ridmap", MapIds),
];

/// Every option of a mount that is neither left to its file system nor
/// refused.
pub fn known_mount_options() -> impl Iterator<Item = &'static str> {
    let refused = |effect: &Effect| matches!(effect, Set(libc::MS_REMOUNT) | MapIds);
    let known = OPTIONS.iter().filter(move |(_, effect)| !refused(effect));
    known.map(|(name, _)| *name)
}

/// The options of a mount, by where they go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// MS_*, with MS_BIND and MS_REC for a bind mount.
    pub(crate) flags: u64,
    /// MS_SHARED …, MS_REC; 0 = not given.
    pub(super) propagation: u64,
    /// MOUNT_ATTR_* to set on the mount and all below it.
    pub(super) set_below: u64,
    /// MOUNT_ATTR_* to clear there.
    pub(super) clear_below: u64,
    pub(super) copy_up: bool,
    pub(super) map_ids: bool,
    /// What is left to the file system, in order.
    pub(crate) data: Vec<String>,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Self {
        let mut options = Self::default();
        for word in words {
            match OPTIONS.iter().find(|(name, _)| name == word) {
                Some((_, effect)) => options.apply(*effect),
                None => options.data.push(word.clone()),
            }
        }
        options
    }

    pub(super) fn has(&self, flag: u64) -> bool {
        self.flags & flag == flag
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Set(flags) => self.flags |= flags,
            Clear(flags) => self.flags &= !flags,
            Propagate(flags) => self.propagation = flags,
            SetBelow(attributes) => {
                self.set_below |= attributes;
                self.clear_below &= !attributes;
            }
            ClearBelow(attributes) => {
                self.clear_below |= attributes;
                self.set_below &= !attributes;
            }
            // The ways are values of one field, which must be cleared as a
            // whole when one is set: mount_setattr(2).
            AccessTimeBelow(way) => {
                self.clear_below |= libc::MOUNT_ATTR__ATIME;
                self.set_below &= !libc::MOUNT_ATTR__ATIME;
                self.set_below |= way;
            }
            CopyUp => self.copy_up = true,
            MapIds => self.map_ids = true,
            Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Options {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    #[test]
    fn later_options_win() {
        assert_eq!(parse("ro nosuid rw").flags, libc::MS_NOSUID);
        assert_eq!(parse("rw ro").flags, libc::MS_RDONLY);
        assert_eq!(
            parse("rprivate shared").propagation,
            libc::MS_SHARED,
            "the last propagation holds"
        );
        let below = parse("rro rrw");
        assert_eq!(
            (below.set_below, below.clear_below),
            (0, libc::MOUNT_ATTR_RDONLY)
        );
    }

    #[test]
    fn unknown_words_go_to_the_file_system_in_order() {
        let options = parse("mode=755 nosuid size=64k tmpcopyup");
        assert_eq!(options.data, ["mode=755", "size=64k"]);
        assert!(options.copy_up);
    }

    #[test]
    fn the_access_time_field_is_cleared_as_a_whole() {
        let options = parse("rnoatime rstrictatime rnosuid");
        assert_eq!(
            options.set_below,
            libc::MOUNT_ATTR_STRICTATIME | libc::MOUNT_ATTR_NOSUID
        );
        assert_eq!(options.clear_below, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn options_that_are_refused_are_not_known() {
        let known: Vec<_> = known_mount_options().collect();
        assert!(known.contains(&"rro") && known.contains(&"tmpcopyup"));
        assert!(!known.contains(&"ridmap") && !known.contains(&"remount"));
    }

    #[test]
    fn each_option_is_defined_once() {
        let mut names: Vec<_> = OPTIONS.iter().map(|(name, _)| *name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
