//! What `ctr events` shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Ctr;
use crate::command::Running;
use crate::wait::{until, until_true};

/// How long events may take.
const SOON: Duration = Duration::from_secs(20);

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// The namespace in which it happened.
    pub namespace: String,
    /// `/tasks/start` and the like.
    pub topic: String,
    /// The message, as JSON.
    pub body: Value,
}

impl Event {
    /// A field that is a text.
    pub fn text(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_default()
    }

    /// A field that is a number; 0 is left out of messages.
    pub fn number(&self, name: &str) -> i64 {
        self.body[name].as_i64().unwrap_or_default()
    }

    /// A line of `ctr events`: a time in four words, namespace, topic, message.
    fn parse(line: &str) -> Option<Event> {
        let mut words = line.splitn(7, ' ').skip(4);
        Some(Event {
            namespace: words.next()?.to_owned(),
            topic: words.next()?.to_owned(),
            body: serde_json::from_str(words.next()?).ok()?,
        })
    }
}

/// Somebody who listens to an engine.
pub struct Events<'h> {
    listener: Running<'h>,
}

impl<'h> Events<'h> {
    /// Listens to all that happens from here on.
    pub(super) fn listen(ctr: &Ctr<'_, 'h>) -> Result<Events<'h>> {
        let listener = ctr.command(["events"]).limit(Duration::from_secs(600));
        let events = Events {
            listener: listener.start()?,
        };
        until_true("the first event", SOON, || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
            // That is an event, too, if it is a change.
            let label = format!("listener={now}");
            ctr.does(["namespaces", "label", "default", &label])?;
            Ok(!events.seen().is_empty())
        })?;
        Ok(events)
    }

    /// What has happened so far.
    pub fn seen(&self) -> Vec<Event> {
        let bytes = self.listener.written();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter_map(Event::parse).collect()
    }

    /// What has happened to a container so far, oldest first: its tasks' events.
    pub fn of(&self, container: &str) -> Vec<Event> {
        let mut events = self.seen();
        events.retain(|event| {
            event.topic.starts_with("/tasks/") && event.text("container_id") == container
        });
        events
    }

    /// Waits for an event of a container that fits.
    pub fn wait(
        &self,
        container: &str,
        topic: &str,
        fits: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let found = until(topic, SOON, || {
            let mut events = self.of(container).into_iter();
            Ok(events.find(|event| event.topic == topic && fits(event)))
        });
        found.with_context(|| format!("events of {container}: {:#?}", self.of(container)))
    }

    /// Demands the topics of a container's first events, in this order and no
    /// others between them.
    pub fn demand(&self, container: &str, topics: &[String]) -> Result<()> {
        let last = topics.last().context("no topics")?;
        self.wait(container, last, |_| true)?;
        let events = self.of(container);
        let seen: Vec<&String> = events.iter().map(|event| &event.topic).collect();
        ensure!(
            seen.iter().zip(topics).all(|(seen, topic)| *seen == topic),
            "events of {container}: {seen:?}\nwere expected: {topics:?}"
        );
        Ok(())
    }

    /// Stops listening.
    pub fn stop(self) -> Result<()> {
        self.listener.signal(Signal::SIGKILL)?;
        if self.listener.exit_within(SOON).is_err() {
            bail!("the listener does not end");
        }
        Ok(())
    }
}
