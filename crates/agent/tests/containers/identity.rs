//! What makes a VM the one of a sandbox, and how one becomes a template.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use casemate_protocol::agent::{
    ContainerSpec, DeviceRule, Empty, HelloRequest, Identity, Mount, PrepareSandboxRequest,
    namespace::Kind,
};
use ttrpc::Code;

use crate::guest::{Guest, limit, status};

const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

fn request() -> PrepareSandboxRequest {
    PrepareSandboxRequest {
        sandbox_id: "sandbox".into(),
        hostname: "guest".into(),
        entropy: vec![7; 32],
        machine_id: MACHINE_ID.into(),
        vcpus: 1,
        memory_mib: 64,
        ..Default::default()
    }
}

async fn prepare(guest: &Guest, request: &PrepareSandboxRequest) -> ttrpc::Result<Identity> {
    let answer = guest.agent.prepare_sandbox(limit(), request).await?;
    Ok(answer.identity.unwrap())
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
}

#[tokio::test]
async fn all_that_was_asked_for_is_confirmed() {
    let Some(guest) = Guest::boot().await else {
        return;
    };
    guest.hello().await;
    let before = now_ns();
    let identity = prepare(&guest, &request()).await.unwrap();
    assert_eq!(identity.entropy_bits, 256);
    assert_eq!(identity.machine_id, MACHINE_ID);
    assert_eq!(identity.hostname, "guest");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(identity.boot_id, boot_id.trim());
    assert!((before..=now_ns()).contains(&identity.realtime_ns));
    assert!(identity.vcpus >= 1 && identity.memory_mib >= 64);
    // There is no such device.
    assert_eq!(identity.cid, 0);
    let error = prepare(&guest, &request()).await.unwrap_err();
    assert_eq!(status(error).0, Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn nothing_is_confirmed_that_was_not_done() {
    let Some(guest) = Guest::boot().await else {
        return;
    };
    guest.hello().await;
    let bad = PrepareSandboxRequest {
        machine_id: "me".into(),
        ..request()
    };
    let (code, text) = status(prepare(&guest, &bad).await.unwrap_err());
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("32 lower-case hexadecimal digits"), "{text}");
    let little = PrepareSandboxRequest {
        entropy: Vec::new(),
        machine_id: String::new(),
        ..request()
    };
    let identity = prepare(&guest, &little).await.unwrap();
    assert_eq!(
        (identity.entropy_bits, identity.machine_id.as_str()),
        (0, "")
    );
}

#[tokio::test]
async fn a_template_calls_again_and_is_prepared_then() {
    let Some(mut guest) = Guest::boot().await else {
        return;
    };
    let error = guest.agent.become_template(limit(), &Empty::new()).await;
    assert_eq!(status(error.unwrap_err()).0, Code::FAILED_PRECONDITION);
    guest.hello().await;
    // One after the other, as a clone may be saved in turn.
    for _ in 0..2 {
        let empty = Empty::new();
        guest.agent.become_template(limit(), &empty).await.unwrap();
        let (code, text) = status(prepare(&guest, &request()).await.unwrap_err());
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert!(text.contains("template"), "{text}");
        guest.called_again().await;
        let greeting = HelloRequest {
            min_version: 1,
            max_version: 1,
            ..Default::default()
        };
        let hello = guest.agent.hello(limit(), &greeting).await.unwrap();
        assert_eq!(hello.spans[0].name, "resume");
        let length = hello.now_ns - hello.spans[0].begin_ns;
        assert!(length < 5_000_000_000, "{length} ns since the resume");
    }
    prepare(&guest, &request()).await.unwrap();
    let error = guest.agent.become_template(limit(), &Empty::new()).await;
    assert_eq!(status(error.unwrap_err()).0, Code::FAILED_PRECONDITION);
    // Streams arrive at the listener of this connection.
    assert_eq!(guest.run(guest.spec("echo it works")).await.1, "it works\n");
}

/// A clone of a template, as far as there is one without a VM.
async fn clone() -> Option<Guest> {
    let mut guest = Guest::boot().await?;
    guest.hello().await;
    let empty = Empty::new();
    guest.agent.become_template(limit(), &empty).await.unwrap();
    guest.called_again().await;
    guest.hello().await;
    prepare(&guest, &request()).await.unwrap();
    Some(guest)
}

fn limited(guest: &Guest, script: &str, path: &str) -> ContainerSpec {
    let mut spec = guest.spec(script);
    let cgroup = spec.cgroup.mut_or_insert_default();
    cgroup.path = path.into();
    cgroup.device_rules = asked_for();
    let limit = ("cgroup.max.depth".to_owned(), "7".to_owned());
    cgroup.settings = [limit].into();
    spec
}

#[tokio::test]
async fn a_template_has_a_cgroup_for_one_container() {
    let Some(guest) = clone().await else {
        return;
    };
    let spare = guest.cgroup().join(".spare");
    // Not for who would see where it is,
    let mut seen = limited(&guest, "true", "pod/one");
    seen.namespaces
        .retain(|namespace| namespace.kind != Kind::CGROUP.into());
    guest.create("one", seen).await.unwrap();
    assert_eq!(pids(&spare), 0);
    assert_eq!(pids(&guest.cgroup().join("pod/one")), 1);
    // but for the first other one, with its limits and rules and its end.
    let script = "grep ^0: /proc/self/cgroup; mknod /dev/x c 1 11 && cat /dev/x || echo denied";
    for (id, place) in [("two", ".spare"), ("three", "pod/three")] {
        let spec = limited(&guest, script, &format!("pod/{id}"));
        let place = guest.cgroup().join(place);
        guest.create(id, spec).await.unwrap();
        assert_eq!(pids(&place), 1, "{id}");
        let most = std::fs::read_to_string(place.join("cgroup.max.depth")).unwrap();
        assert_eq!(most, "7\n");
    }
    let error = guest
        .create("four", limited(&guest, "true", ".spare"))
        .await;
    assert_eq!(status(error.unwrap_err()).0, Code::INVALID_ARGUMENT);
    for id in ["two", "three"] {
        let (_, text, errors) = guest.run_created(id, "").await;
        assert_eq!(text, "0::/\ndenied\n", "{id}: {errors}");
    }
    guest.remove("two").await.unwrap();
    assert!(!spare.exists());
}

#[tokio::test]
async fn rules_that_are_not_the_usual_ones_take_their_place() {
    let Some(guest) = clone().await else {
        return;
    };
    // Null is usual, zero as well: only that is wanted.
    let script = "mknod /dev/x c 1 5; head -c1 /dev/x | wc -c; cat /dev/null || echo denied";
    let mut spec = limited(&guest, script, "pod/one");
    let rules = &mut spec.cgroup.as_mut().unwrap().device_rules;
    rules.retain(|rule| rule.minor != Some(3));
    guest.create("one", spec).await.unwrap();
    assert_eq!(pids(&guest.cgroup().join(".spare")), 1);
    let (_, text, errors) = guest.run_created("one", "").await;
    assert_eq!(text, "1\ndenied\n", "{errors}");

    let Some(guest) = clone().await else {
        return;
    };
    let script = "mknod /dev/x c 1 7; head -c1 /dev/x | wc -c; mknod /dev/y c 10 237; cat /dev/y";
    let mut spec = limited(&guest, script, "pod/one");
    spec.cgroup.as_mut().unwrap().device_rules.clear();
    let (_, text, errors) = guest.run(spec).await;
    assert_eq!(text, "1\n");
    // Whether there is such a device or not, no rule keeps it away.
    assert!(!errors.contains("not permitted"), "{errors}");
}

/// The device rules that the host asks for where a client adds none.
fn asked_for() -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: kind.into(),
        major,
        minor,
        access: access.into(),
        ..Default::default()
    };
    let open = |(major, minor)| rule(true, "c", Some(major), minor, "rwm");
    let mut rules = vec![
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
    ];
    rules.extend([3, 5, 7, 8, 9].map(|minor| open((1, Some(minor)))));
    rules.extend([(5, Some(0)), (136, None), (5, Some(2))].map(open));
    rules
}

fn pids(cgroup: &Path) -> usize {
    let list = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    list.lines().count()
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_at_once() {
    let Some(guest) = Guest::boot().await else {
        return;
    };
    guest.hello().await;
    let wrong = PrepareSandboxRequest {
        mounts: vec![Mount {
            fstype: "nosuchfs".into(),
            source: "nothing".into(),
            destination: "/run/casemate/nothing".into(),
            ..Default::default()
        }],
        ..request()
    };
    let (code, text) = status(prepare(&guest, &wrong).await.unwrap_err());
    assert_eq!(code, Code::INTERNAL, "{text}");
    assert!(text.contains("error mounting \"nothing\""), "{text}");
}
