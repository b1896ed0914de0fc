//! What the muxer needs of epoll: it hears of host sockets, a timer and its
//! own reminders in the event loop that also serves the virtqueues.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Event numbers below this belong to the virtqueues and the event loop.
pub const TOKEN_LISTENER: u16 = 16;
/// The deadline timer.
pub const TOKEN_TIMER: u16 = 17;
/// Work that was put off to let other events in.
pub const TOKEN_AGAIN: u16 = 18;
/// Number of the first host stream.
pub const TOKEN_STREAMS: u16 = 64;

/// Registrations in one epoll instance. All of them are edge-triggered: a
/// stream the guest does not read from must not wake us again and again.
pub struct Poll {
    epoll: Epoll,
    timer: TimerFd,
    armed: Option<Instant>,
    again: EventFd,
}

impl Poll {
    /// Adds timer and reminder to this epoll instance.
    pub fn new(epoll: OwnedFd) -> io::Result<Poll> {
        let poll = Poll {
            epoll: Epoll(epoll),
            timer: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
            )?,
            armed: None,
            again: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        };
        poll.add(&poll.timer, TOKEN_TIMER)?;
        poll.add(&poll.again, TOKEN_AGAIN)?;
        Ok(poll)
    }

    /// Reports input and hang-up of this descriptor until it is closed.
    pub fn add(&self, fd: impl AsFd, token: u16) -> io::Result<()> {
        Ok(self.epoll.add(fd, event(token, false))?)
    }

    /// Starts or ends reports of room to write.
    pub fn watch_room(&self, fd: impl AsFd, token: u16, watch: bool) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut event(token, watch))?)
    }

    /// Asks for [`TOKEN_AGAIN`] after the events that are already there.
    pub fn again(&self) -> io::Result<()> {
        self.again.write(1)?;
        Ok(())
    }

    /// Asks for [`TOKEN_TIMER`] at this time or before.
    pub fn wake_at(&mut self, deadline: Instant) -> io::Result<()> {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // A zero expiration would disarm it.
        let delay = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        self.timer.set(
            Expiration::OneShot(TimeSpec::from_duration(delay)),
            TimerSetTimeFlags::empty(),
        )?;
        self.armed = Some(deadline);
        Ok(())
    }

    /// Notes that the timer went off.
    pub fn timer_expired(&mut self) {
        self.armed = None;
    }
}

fn event(token: u16, room: bool) -> EpollEvent {
    let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    if room {
        flags |= EpollFlags::EPOLLOUT;
    }
    EpollEvent::new(flags, u64::from(token))
}
