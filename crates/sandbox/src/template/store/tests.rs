use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::{FileExt, PermissionsExt},
};

use super::*;
use crate::template::{fit::Ground, header::tests::header, workplace::Workplace};

/// A store that lives as long as its folder.
struct Yard {
    folder: tempfile::TempDir,
    store: Store,
}

fn yard() -> Yard {
    let folder = tempfile::Builder::new().prefix("t").tempdir().unwrap();
    let store = Store::at(&folder.path().join("templates"));
    Yard { folder, store }
}

fn fit(recipe: &str) -> Fit {
    Fit::new(Ground::fake(), recipe)
}

/// Makes a template of `pages` pages.
fn make(store: &Store, fit: &Fit, pages: u64) -> Header {
    let place = Workplace::claim(store, fit.key()).unwrap().unwrap();
    let files = place.files().unwrap();
    (&files.state).write_all(b"state").unwrap();
    files.memory.set_len(1 << 20).unwrap();
    for page in 0..pages {
        files.memory.write_all_at(&[7; 4096], page * 8192).unwrap();
    }
    let [state, memory] = place.parts(&files).unwrap();
    drop(files);
    let header = Header {
        state,
        memory,
        ..header(fit)
    };
    place.finish(&header).unwrap();
    header
}

fn is_there(store: &Store, fit: &Fit) -> bool {
    store.find(fit).unwrap().is_some()
}

/// Everything below the store's folder.
fn names(store: &Store) -> Vec<String> {
    let mut names = store.names().unwrap();
    names.sort();
    names
}

#[test]
fn a_template_is_found_by_who_it_fits() {
    let Yard { store, .. } = yard();
    let fit = fit("machine");
    assert!(!is_there(&store, &fit));
    assert!(store.list().unwrap().is_empty());
    let header = make(&store, &fit, 3);
    let Found {
        header: found,
        files,
    } = store.find(&fit).unwrap().unwrap();
    assert_eq!(found, header);
    let mut state = String::new();
    (&files.state).read_to_string(&mut state).unwrap();
    assert_eq!(state, "state");
    assert!(!is_there(&store, &self::fit("another")));
    store.verify(&header).unwrap();
    let list = store.list().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].key, *fit.key());
    assert!(
        (3 << 12..9 << 12).contains(&list[0].bytes),
        "{}",
        list[0].bytes
    );
    assert_eq!(names(&store), [fit.key().as_str()]);
    // Who has it open keeps it.
    assert!(store.remove(fit.key()).unwrap());
    assert!(!store.remove(fit.key()).unwrap());
    assert_eq!(files.memory.metadata().unwrap().len(), 1 << 20);
    assert!(names(&store).is_empty());
}

/// What may happen to a template.
type Harm = fn(&Path);

#[test]
fn one_that_was_touched_is_never_used() {
    let harms: [Harm; 9] = [
        |folder| fs::write(folder.join(STATE), "stale").unwrap(),
        |folder| fs::write(folder.join(STATE), "").unwrap(),
        |folder| fs::remove_file(folder.join(STATE)).unwrap(),
        |folder| {
            let memory = File::options().write(true).open(folder.join(MEMORY));
            memory.unwrap().set_len(4096).unwrap();
        },
        |folder| {
            let memory = File::options().write(true).open(folder.join(MEMORY));
            memory.unwrap().write_all_at(b"x", 5).unwrap();
        },
        |folder| {
            fs::copy(folder.join(MEMORY), folder.join("copy")).unwrap();
            fs::rename(folder.join("copy"), folder.join(MEMORY)).unwrap();
        },
        |folder| fs::remove_file(folder.join(MEMORY)).unwrap(),
        |folder| fs::remove_file(folder.join(HEADER)).unwrap(),
        |folder| {
            let mut text = fs::read_to_string(folder.join(HEADER)).unwrap();
            text = text.replace("\"vcpus\": 1", "\"vcpus\": 2");
            fs::set_permissions(folder.join(HEADER), fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(folder.join(HEADER), text).unwrap();
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let Yard { store, folder } = yard();
        let fit = fit("machine");
        make(&store, &fit, 3);
        harm(&store.place(fit.key()));
        let list = store.list().unwrap();
        assert!(list[0].header.is_err(), "{number}");
        assert!(!is_there(&store, &fit), "{number}");
        // It is gone, and another can be made.
        assert!(names(&store).is_empty(), "{number}");
        make(&store, &fit, 3);
        assert!(is_there(&store, &fit), "{number}");
        drop(folder);
    }
}

#[test]
fn contents_that_changed_in_silence_are_found_by_who_reads_them_all() {
    let Yard { store, .. } = yard();
    let fit = fit("machine");
    let mut header = make(&store, &fit, 3);
    header.memory.sha256 = "0".repeat(64);
    assert!(matches!(store.verify(&header), Err(Unfit::File(MEMORY))));
    let mut header = make(&store, &fit, 3);
    header.state.sha256 = "0".repeat(64);
    assert!(matches!(store.verify(&header), Err(Unfit::File(STATE))));
}

#[test]
fn one_under_another_s_name_is_not_used() {
    let Yard { store, .. } = yard();
    let [one, other] = ["machine", "another"].map(fit);
    make(&store, &one, 1);
    fs::rename(store.place(one.key()), store.place(other.key())).unwrap();
    assert!(!is_there(&store, &other));
    assert!(names(&store).is_empty());
}

#[test]
fn a_new_one_takes_the_place_of_the_old_one() {
    let Yard { store, .. } = yard();
    let fit = fit("machine");
    make(&store, &fit, 1);
    let second = make(&store, &fit, 2);
    assert_eq!(store.find(&fit).unwrap().unwrap().header, second);
    assert_eq!(names(&store), [fit.key().as_str()]);
}

#[test]
fn one_maker_at_a_time_and_what_a_dead_one_has_left_is_swept() {
    let Yard { store, .. } = yard();
    let fit = fit("machine");
    let place = Workplace::claim(&store, fit.key()).unwrap().unwrap();
    assert!(Workplace::claim(&store, fit.key()).unwrap().is_none());
    place.files().unwrap();
    fs::create_dir(place.path().join("vsock")).unwrap();
    assert_eq!(names(&store), [format!("{NEW}{}", fit.key())]);
    assert!(!is_there(&store, &fit));
    // A living one is left alone.
    assert!(store.prune(u64::MAX, None).unwrap().is_empty());
    assert_eq!(names(&store).len(), 1);
    drop(place);
    assert!(names(&store).is_empty());
    // As a kill leaves it.
    let dead = store.root().join(format!("{NEW}{}", fit.key()));
    let leave = || {
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(MEMORY), "half").unwrap();
        fs::create_dir(dead.join("vsock")).unwrap();
    };
    leave();
    store.prune(u64::MAX, None).unwrap();
    assert!(names(&store).is_empty());
    leave();
    make(&store, &fit, 1);
    assert!(is_there(&store, &fit));
    assert_eq!(names(&store), [fit.key().as_str()]);
    // So is what somebody has begun to remove.
    fs::rename(store.place(fit.key()), store.grave()).unwrap();
    store.prune(u64::MAX, None).unwrap();
    assert!(names(&store).is_empty());
}

#[test]
fn use_counts_when_room_is_needed() {
    let Yard { store, .. } = yard();
    let fits = ["a", "b", "c"].map(fit);
    for fit in &fits {
        make(&store, fit, 4);
        // Apart by more than a clock tick.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(is_there(&store, &fits[0]));
    let each = store.list().unwrap()[0].bytes;
    let pruned = store.prune(2 * each, None).unwrap();
    assert_eq!(pruned.len(), 1);
    assert_eq!(pruned[0].key, *fits[1].key());
    assert!(is_there(&store, &fits[0]) && is_there(&store, &fits[2]));
}

#[test]
fn the_log_of_makers_does_not_grow_for_ever() {
    let Yard { store, .. } = yard();
    store.make().unwrap();
    let log = store.root().join(LOG);
    for (bytes, stays) in [(100 << 10, true), (200 << 10, false)] {
        fs::write(&log, vec![b'x'; bytes]).unwrap();
        store.prune(u64::MAX, None).unwrap();
        assert_eq!(log.exists(), stays);
    }
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let Yard { store, .. } = yard();
    let fit = fit("machine");
    make(&store, &fit, 1);
    fs::set_permissions(store.root(), fs::Permissions::from_mode(0o720)).unwrap();
    let refusal = store.find(&fit).unwrap_err().to_string();
    assert!(refusal.contains("can be written by others"), "{refusal}");
    assert!(store.make().is_err() && store.list().is_err());
    fs::set_permissions(store.root(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(is_there(&store, &fit));
    let long = Store::at(&store.root().join("x".repeat(60)));
    let refusal = long.make().unwrap_err().to_string();
    assert!(refusal.contains("longer than 60 bytes"), "{refusal}");
}

#[test]
fn a_failure_is_remembered_for_a_while() {
    let Yard { store, .. } = yard();
    let key = fit("machine").key().clone();
    assert_eq!(store.failure(&key), None);
    store.note_failure(&key, "no\nroom").unwrap();
    let failure = store.failure(&key).unwrap();
    assert_eq!(failure.reason, "no room");
    assert!(!failure.is_over());
    store.prune(u64::MAX, None).unwrap();
    assert_eq!(store.failures().unwrap(), std::slice::from_ref(&failure));
    let old = crate::template::Failure {
        when: SystemTime::now() - std::time::Duration::from_secs(3600),
        ..failure
    };
    assert!(old.is_over());
    store.forget_failure(&key).unwrap();
    assert!(names(&store).is_empty());
}
