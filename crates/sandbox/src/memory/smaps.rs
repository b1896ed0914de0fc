//! What a process has in memory, by kind, from the text of `/proc/<pid>/smaps`
//! (proc_pid_smaps(5)). Nothing here asks the system anything.

use std::{collections::BTreeMap, ops::AddAssign};

/// What a page of a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Memory of the guest, which VMM and device process map both.
    Guest,
    /// Code that an emulating VMM has translated: anonymous memory that can be
    /// written and executed.
    Translated,
    /// Anonymous memory of the process alone: heap, stacks.
    Private,
    /// Own copies of pages of files, and anonymous memory that is still shared
    /// with the process that it was forked from, or merged by the kernel.
    CopyOnWrite,
    /// Shared memory that is not the guest's.
    Shared,
    /// Pages of files, which are in memory once for all who map them.
    PageCache,
}

impl Kind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::Guest,
        Self::Translated,
        Self::Private,
        Self::CopyOnWrite,
        Self::Shared,
        Self::PageCache,
    ];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Translated => "translated",
            Self::Private => "private",
            Self::CopyOnWrite => "copyOnWrite",
            Self::Shared => "shared",
            Self::PageCache => "pageCache",
        }
    }
}

/// Memory in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Pages that are in memory, whoever else maps them.
    pub rss: u64,
    /// The same, where a page that n mappings show counts as an n-th: sums of
    /// processes count no page twice.
    pub pss: u64,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.rss += other.rss;
        self.pss += other.pss;
    }
}

/// What one process has, or several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weight {
    kinds: [Amount; Kind::ALL.len()],
    /// KiB of its pages that the kernel has merged with equal ones (KSM). They
    /// are among the others.
    pub merged: u64,
}

impl Weight {
    /// What it has of one kind.
    pub fn of(&self, kind: Kind) -> Amount {
        self.kinds[kind as usize]
    }

    /// What it has of all kinds.
    pub fn all(&self) -> Amount {
        let mut all = Amount::default();
        for amount in self.kinds {
            all += amount;
        }
        all
    }

    fn add(&mut self, kind: Kind, amount: Amount) {
        self.kinds[kind as usize] += amount;
    }
}

impl AddAssign<&Self> for Weight {
    fn add_assign(&mut self, other: &Self) {
        for kind in Kind::ALL {
            self.add(kind, other.of(kind));
        }
        self.merged += other.merged;
    }
}

/// A file that is mapped: device and inode.
pub(super) type Identity = (String, u64);

/// One mapping of a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Mapping {
    /// Its addresses, as `/proc/<pid>/map_files` names it.
    pub(super) range: String,
    permissions: String,
    offset: String,
    device: String,
    inode: u64,
    /// KiB of each field.
    fields: BTreeMap<String, u64>,
}

impl Mapping {
    fn kib(&self, field: &str) -> u64 {
        self.fields.get(field).copied().unwrap_or(0)
    }

    pub(super) fn size_kib(&self) -> u64 {
        self.kib("Size")
    }

    pub(super) fn identity(&self) -> Identity {
        (self.device.clone(), self.inode)
    }

    fn can(&self, permission: char) -> bool {
        self.permissions.contains(permission)
    }

    /// Whether it is memory, and no file of a disk: that has the device of a tmpfs.
    fn is_shared_memory(&self) -> bool {
        self.can('s') && self.can('w') && self.device.starts_with("00:")
    }

    fn amount(&self) -> Amount {
        Amount {
            rss: self.kib("Rss"),
            pss: self.kib("Pss"),
        }
    }
}

/// Reads the text of smaps.
pub(super) fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(field) = first.strip_suffix(':') {
            let value = words.next().and_then(|value| value.parse().ok());
            if let (Some(mapping), Some(value)) = (mappings.last_mut(), value) {
                mapping.fields.insert(field.to_owned(), value);
            }
            continue;
        }
        let mut word = || words.next().unwrap_or_default().to_owned();
        mappings.push(Mapping {
            range: first.to_owned(),
            permissions: word(),
            offset: word(),
            device: word(),
            inode: word().parse().unwrap_or(0),
            fields: BTreeMap::new(),
        });
    }
    mappings
}

/// The mappings of a VMM that show the guest's memory, one of each file: what the
/// machine has begun with, and what it was given later. They are shared, can be
/// written, and come in whole MiB.
pub(super) fn guest_memory(vmm: &[Mapping]) -> BTreeMap<Identity, &Mapping> {
    let of_guest = |mapping: &&Mapping| {
        let mib = mapping.size_kib() >> 10;
        mapping.is_shared_memory() && mib > 0 && mapping.size_kib() == mib << 10
    };
    let of_guest = vmm.iter().filter(of_guest);
    of_guest.map(|one| (one.identity(), one)).collect()
}

/// Sums up what mappings show; `guest` are the files that are the guest's memory.
pub(super) fn weigh<T>(mappings: &[Mapping], guest: &BTreeMap<Identity, T>) -> Weight {
    let mut weight = Weight::default();
    // A process may map the same memory for each of its devices: it has it once.
    let mut guest_rss = BTreeMap::<(Identity, &str), u64>::new();
    for mapping in mappings {
        weight.merged += mapping.kib("KSM");
        let identity = mapping.identity();
        if guest.contains_key(&identity) {
            let rss = guest_rss.entry((identity, &mapping.offset)).or_default();
            *rss = (*rss).max(mapping.kib("Rss"));
            let pss = mapping.kib("Pss");
            weight.add(Kind::Guest, Amount { rss: 0, pss });
        } else {
            weigh_mapping(mapping, &mut weight);
        }
    }
    let rss = guest_rss.values().sum();
    weight.add(Kind::Guest, Amount { rss, pss: 0 });
    weight
}

fn weigh_mapping(mapping: &Mapping, weight: &mut Weight) {
    let all = mapping.amount();
    let is_file = mapping.inode != 0;
    if mapping.can('s') {
        let kind = [Kind::PageCache, Kind::Shared][usize::from(mapping.is_shared_memory())];
        return weight.add(kind, all);
    }
    if is_file {
        let rss = mapping.kib("Anonymous").min(all.rss);
        // What is dirty in a private mapping are its copies.
        let dirty = mapping.fields.get("Pss_Dirty").copied().unwrap_or(rss);
        let pss = dirty.min(rss).min(all.pss);
        let copied = Amount { rss, pss };
        weight.add(Kind::CopyOnWrite, copied);
        return weight.add(Kind::PageCache, rest(all, copied));
    }
    if mapping.can('w') && mapping.can('x') {
        return weight.add(Kind::Translated, all);
    }
    let alone = (mapping.kib("Private_Clean") + mapping.kib("Private_Dirty")).min(all.pss);
    let private = Amount {
        rss: alone,
        pss: alone,
    };
    weight.add(Kind::Private, private);
    weight.add(Kind::CopyOnWrite, rest(all, private));
}

fn rest(all: Amount, part: Amount) -> Amount {
    Amount {
        rss: all.rss - part.rss,
        pss: all.pss - part.pss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel writes it, with fields left out that nobody reads.
    const VMM: &str = "\
5500-5600 r-xp 00001000 fe:00 9    /usr/bin/vmm
Size:  4096 kB
Rss:  3000 kB
Pss:  1000 kB
Pss_Dirty:  0 kB
Anonymous:  0 kB
KSM:  0 kB
VmFlags: rd ex
5600-5700 rw-p 00002000 fe:00 9    /usr/bin/vmm
Size:  2000 kB
Rss:  1500 kB
Pss:  1300 kB
Pss_Dirty:  1200 kB
Anonymous:  1200 kB
5700-5800 rw-p 00000000 00:00 0    [heap]
Size:  500 kB
Rss:  400 kB
Pss:  350 kB
Shared_Dirty:  100 kB
Private_Dirty:  300 kB
Anonymous:  400 kB
KSM:  80 kB
5800-5900 rwxp 00000000 00:00 0
Size:  65536 kB
Rss:  40000 kB
Pss:  40000 kB
5900-6000 rw-s 00000000 00:01 55   /memfd:guest (deleted)
Size:  262144 kB
Rss:  30000 kB
Pss:  25000 kB
6000-6100 rw-s 00000000 00:01 56   /dev/zero (deleted)
Size:  4 kB
Rss:  4 kB
Pss:  2 kB
6100-6200 r--s 00000000 fe:00 57   /etc/file
Size:  8 kB
Rss:  8 kB
Pss:  8 kB
";

    fn nothing() -> BTreeMap<Identity, ()> {
        BTreeMap::new()
    }

    fn amount(rss: u64, pss: u64) -> Amount {
        Amount { rss, pss }
    }

    #[test]
    fn every_page_has_its_kind() {
        let mappings = parse(VMM);
        let guest = guest_memory(&mappings);
        let [memory] = guest.values().collect::<Vec<_>>()[..] else {
            panic!("{guest:?}")
        };
        assert_eq!(
            (memory.range.as_str(), memory.size_kib()),
            ("5900-6000", 262_144)
        );
        let weight = weigh(&mappings, &guest);
        let expected = [
            (Kind::Guest, amount(30_000, 25_000)),
            (Kind::Translated, amount(40_000, 40_000)),
            (Kind::Private, amount(300, 300)),
            (Kind::CopyOnWrite, amount(1300, 1250)),
            (Kind::Shared, amount(4, 2)),
            (Kind::PageCache, amount(3308, 1108)),
        ];
        for (kind, expected) in expected {
            assert_eq!(weight.of(kind), expected, "{kind:?}");
        }
        assert_eq!(weight.merged, 80);
    }

    #[test]
    fn no_page_is_lost() {
        let mappings = parse(VMM);
        let sum = |field: &str| mappings.iter().map(|mapping| mapping.kib(field)).sum();
        for guest in [BTreeMap::new(), guest_memory(&mappings)] {
            let weight = weigh(&mappings, &guest);
            assert_eq!(weight.all(), amount(sum("Rss"), sum("Pss")));
        }
    }

    #[test]
    fn memory_that_is_mapped_twice_is_resident_once() {
        let twice = "\
1000-2000 rw-s 00000000 00:01 55 /memory
Size: 2048 kB
Rss:  900 kB
Pss:  300 kB
2000-3000 rw-s 00000000 00:01 55 /memory
Rss:  700 kB
Pss:  200 kB
3000-4000 rw-s 00100000 00:01 55 /memory
Rss:  10 kB
Pss:  5 kB
4000-5000 rw-s 00000000 00:01 77 /more
Size: 1024 kB
Rss:  50 kB
Pss:  50 kB
";
        let mappings = parse(twice);
        let guest = guest_memory(&mappings);
        assert_eq!(guest.len(), 2);
        let weight = weigh(&mappings, &guest);
        assert_eq!(weight.of(Kind::Guest), amount(960, 555));
        let without = "5600-5700 rw-p 0 fe:00 9 /a\nRss: 10 kB\nPss: 9 kB\nAnonymous: 10 kB\n";
        let weight = weigh(&parse(without), &nothing());
        assert_eq!(weight.of(Kind::CopyOnWrite), amount(10, 9));
    }

    #[test]
    fn what_is_no_smaps_weighs_nothing() {
        for text in ["", "\n\n", "Rss: 5 kB", "x", "a b c d e\nRss: no kB"] {
            let weight = weigh(&parse(text), &nothing());
            assert_eq!(weight, Weight::default(), "{text:?}");
        }
        assert!(guest_memory(&parse("a r-xp 0 0 0\n")).is_empty());
    }
}
