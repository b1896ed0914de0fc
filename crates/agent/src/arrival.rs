//! Waiting for devices, which are plugged and unplugged while the guest runs:
//! the kernel tells that something has changed, and one looks again.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::Duration};

use casemate_linux::{netlink::Changes, reactor::register_readable};
use tokio::time::{Instant, timeout_at};

use crate::error::{Doing, Result};

/// How long a plugged device may take to appear: some 40 ms in an emulated guest,
/// on a host that is busy beyond measure much longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Looks until there is something to be seen: now, and whenever a device has come
/// or gone. `None` when there was nothing within the limit; without one it waits
/// for as long as it takes, and no timer runs.
pub(crate) async fn until_seen<T>(
    limit: Option<Duration>,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    if let Some(seen) = look()? {
        return Ok(Some(seen));
    }
    let what = || "watch for devices".into();
    let news = Changes::of_devices().doing(what)?;
    let news = register_readable(news.into()).doing(what)?;
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        // After the subscription: what comes now is heard of.
        if let Some(seen) = look()? {
            return Ok(Some(seen));
        }
        let ready = match deadline {
            None => news.readable().await,
            Some(deadline) => match timeout_at(deadline, news.readable()).await {
                Ok(ready) => ready,
                Err(_) => return Ok(None),
            },
        };
        let mut ready = ready.doing(what)?;
        Changes::drain(ready.get_inner());
        ready.clear_ready();
    }
}

/// The number of the device that a driver has, if it has one: that of its folder,
/// which the kernel makes anew for each.
pub(crate) fn driven(driver: &Path) -> io::Result<Option<u64>> {
    let gone = |error: io::Error| match error.kind() {
        // Between two looks.
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(error),
    };
    for entry in fs::read_dir(driver)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"virtio") {
            let folder = fs::metadata(entry.path());
            return folder.map(|folder| Some(folder.ino())).or_else(gone);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_is_seen_and_what_does_not_come_is_not() {
        let seen = until_seen(None, || Ok(Some(7))).await.unwrap();
        assert_eq!(seen, Some(7));
        let mut looks = 0;
        let nothing = until_seen(Some(Duration::from_millis(10)), || {
            looks += 1;
            Ok(None::<()>)
        });
        assert_eq!(nothing.await.unwrap(), None);
        // Before and after the subscription; more if the machine had news.
        assert!(looks >= 2);
    }

    #[test]
    fn a_device_in_the_place_of_another_is_another() {
        let place = tempfile::tempdir().unwrap();
        let (driver, bus) = (place.path().join("driver"), place.path().join("bus"));
        fs::create_dir_all(&driver).unwrap();
        fs::write(driver.join("bind"), "").unwrap();
        assert_eq!(driven(&driver).unwrap(), None);
        let plug = |kept: &str| {
            fs::create_dir_all(bus.join("virtio1")).unwrap();
            std::os::unix::fs::symlink(bus.join("virtio1"), driver.join("virtio1")).unwrap();
            let number = driven(&driver).unwrap();
            fs::rename(bus.join("virtio1"), bus.join(kept)).unwrap();
            assert_eq!(driven(&driver).unwrap(), None);
            fs::remove_file(driver.join("virtio1")).unwrap();
            number.unwrap()
        };
        assert_ne!(plug("first"), plug("second"));
    }
}
