//! Waiting for devices, which are plugged and unplugged while the guest runs:
//! the kernel tells that something has changed, and one looks again.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    time::Duration,
};

use casemate_linux::{netlink::Changes, reactor::register_readable};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout_at},
};

use crate::error::{Doing, Result};

/// How long a plugged device may take to appear: some 40 ms in an emulated guest,
/// on a host that is busy beyond measure much longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Looks until there is something to be seen: now, and whenever a device has come
/// or gone. `None` when there was nothing within the limit.
pub(crate) async fn until_seen<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    if let Some(seen) = look()? {
        return Ok(Some(seen));
    }
    let what = || "watch for devices".into();
    let news = Changes::of_devices().doing(what)?;
    let news = register_readable(news.into()).doing(what)?;
    let deadline = Instant::now() + limit;
    loop {
        // After the subscription: what comes now is heard of.
        if let Some(seen) = look()? {
            return Ok(Some(seen));
        }
        let Ok(ready) = timeout_at(deadline, news.readable()).await else {
            return Ok(None);
        };
        let mut ready = ready.doing(what)?;
        Changes::drain(ready.get_inner());
        ready.clear_ready();
    }
}

/// Waits for as long as it takes, and no timer runs, until a driver has got a device.
/// That it has one already is only `look`'s to say: it is asked when nothing can be
/// missed any more, and when something has been. A resumed VM waits here, and what it
/// executes first its host may have to translate, so the kernel's word is enough, and
/// to end the subscription, a millisecond, is left to the caller.
pub(crate) async fn until_driven(
    driver: &str,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<Subscription> {
    let what = || "watch for devices".into();
    let news = Changes::of_devices().doing(what)?;
    let news = register_readable(news.into()).doing(what)?;
    while !look()? {
        let mut whole = true;
        while whole {
            let mut ready = news.readable().await.doing(what)?;
            let mut driven = false;
            whole = Changes::take(ready.get_inner(), |event| {
                driven |= tells_of_binding(event, driver);
            });
            ready.clear_ready();
            if driven {
                return Ok(Subscription(news));
            }
        }
    }
    Ok(Subscription(news))
}

/// What was needed to hear of devices. As long as it is kept, nobody listens.
#[derive(Debug)]
pub(crate) struct Subscription(#[expect(dead_code, reason = "kept")] AsyncFd<OwnedFd>);

/// Whether an event is that of a device that this driver has got: a headline, then
/// `NAME=value`s, each behind a zero (lib/kobject_uevent.c).
fn tells_of_binding(event: &[u8], driver: &str) -> bool {
    event.starts_with(b"bind@")
        && event
            .split(|byte| *byte == 0)
            .filter_map(|part| part.strip_prefix(b"DRIVER="))
            .any(|name| name == driver.as_bytes())
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
        let seen = until_seen(LIMIT, || Ok(Some(7))).await.unwrap();
        assert_eq!(seen, Some(7));
        let mut looks = 0;
        let nothing = until_seen(Duration::from_millis(10), || {
            looks += 1;
            Ok(None::<()>)
        });
        assert_eq!(nothing.await.unwrap(), None);
        // Before and after the subscription; more if the machine had news.
        assert!(looks >= 2);
    }

    #[tokio::test]
    async fn a_device_that_is_there_is_not_waited_for() {
        until_driven("none", || Ok(true)).await.unwrap();
        let mut looks = 0;
        let never = until_driven("none", || {
            looks += 1;
            Ok(false)
        });
        let early = tokio::time::timeout(Duration::from_millis(10), never).await;
        assert!(early.is_err());
        // Once: the kernel's word is waited for.
        assert_eq!(looks, 1);
    }

    #[test]
    fn events_tell_who_has_got_a_device() {
        let event = |action: &str, driver: &str| {
            format!(
                "{action}@/devices/pci0000:00/virtio1\0ACTION={action}\0\
                 DEVPATH=/devices/pci0000:00/virtio1\0SUBSYSTEM=virtio\0\
                 DRIVER={driver}\0MODALIAS=virtio:d00000013v00001AF4\0SEQNUM=7\0"
            )
        };
        let told = |text: String| tells_of_binding(text.as_bytes(), "vsock");
        assert!(told(event("bind", "vsock")));
        assert!(!told(event("unbind", "vsock")) && !told(event("add", "vsock")));
        assert!(!told(event("bind", "vsockets")) && !told("bind@DRIVER=vsock".into()));
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
