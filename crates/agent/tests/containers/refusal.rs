//! What is refused, and in which words.

use casemate_protocol::agent::{CreateContainerRequest, HelloRequest, Process, namespace::Kind};
use ttrpc::Code;

use crate::guest::{Guest, command, limit, of, outputs, shell, status};

#[tokio::test]
async fn hello_comes_first_and_must_fit() {
    let Some(guest) = Guest::boot().await else {
        return;
    };
    let request = CreateContainerRequest::default();
    let error = guest
        .agent
        .create_container(limit(), &request)
        .await
        .unwrap_err();
    assert_eq!(status(error).0, Code::FAILED_PRECONDITION);
    let from_the_future = HelloRequest {
        min_version: 9,
        max_version: 9,
        ..Default::default()
    };
    let error = guest
        .agent
        .hello(limit(), &from_the_future)
        .await
        .unwrap_err();
    let (code, text) = status(error);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(text.contains("protocol version mismatch"), "{text}");
    guest.hello().await;
    let error = guest
        .agent
        .create_container(limit(), &request)
        .await
        .unwrap_err();
    assert_eq!(status(error).0, Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn a_program_that_cannot_run_fails_the_creation_as_with_runc() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let file = |name: &str, content: &str, mode| {
        let path = guest.rootfs().join("bin").join(name);
        std::fs::write(&path, content).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    };
    file("text", "x", 0o644);
    file("private", "x", 0o700);
    file("junk", "\u{1}junk", 0o755);
    file("script", "#!/no/such\n", 0o755);
    let cases = [
        (
            "nothing",
            "exec: \"nothing\": executable file not found in $PATH",
        ),
        ("text", "exec: \"text\": executable file not found in $PATH"),
        (
            "/nothing",
            "exec: \"/nothing\": stat /nothing: no such file or directory",
        ),
        ("/bin/text", "exec: \"/bin/text\": permission denied"),
        ("/bin", "exec: \"/bin\": permission denied"),
        ("/bin/private", "exec /bin/private: permission denied"),
        (
            "/bin/sh/x",
            "exec: \"/bin/sh/x\": stat /bin/sh/x: not a directory",
        ),
    ];
    let process = |program: &str| Process {
        uid: 33,
        capabilities: None.into(),
        ..command(&[program])
    };
    for (program, why) in cases {
        let mut spec = guest.spec("");
        spec.process = Some(process(program)).into();
        let error = guest.create("box", spec).await.unwrap_err();
        let expected = format!("unable to start container process: {why}");
        assert_eq!(status(error), (Code::INVALID_ARGUMENT, expected));
        assert!(!guest.cgroup().join("pod/box").exists());
    }
    // The same of an added process; what only exec can tell comes at the start.
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let error = guest
        .add("box", "e", process("nothing"), outputs())
        .await
        .unwrap_err();
    assert!(
        status(error)
            .1
            .contains("executable file not found in $PATH")
    );
    for (program, why) in [
        ("junk", "exec /bin/junk: exec format error"),
        ("script", "exec /bin/script: no such file or directory"),
    ] {
        guest
            .add("box", program, process(program), outputs())
            .await
            .unwrap();
        let error = guest.start_process("box", program).await.unwrap_err();
        assert!(status(error).1.ends_with(why));
        assert_ne!(guest.wait("box", program).await.exit_status, 0);
    }
}

#[tokio::test]
async fn bad_directories_are_refused_as_with_runc() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("true");
    spec.process.mut_or_insert_default().cwd = "/bin/sh".into();
    let (_, text) = status(guest.create("box", spec).await.unwrap_err());
    assert_eq!(text, "mkdir /bin/sh: not a directory");
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let process = Process {
        cwd: "/none".into(),
        ..shell("true")
    };
    let (_, text) = status(guest.add("box", "e", process, outputs()).await.unwrap_err());
    assert_eq!(
        text,
        "chdir to cwd (\"/none\") set in config.json failed: no such file or directory"
    );
}

#[tokio::test]
async fn ids_are_unique_and_known() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    let again = guest.create("box", guest.spec("true")).await.unwrap_err();
    assert_eq!(status(again).0, Code::ALREADY_EXISTS);
    let bad = guest.create("a/b", guest.spec("true")).await.unwrap_err();
    assert_eq!(status(bad).0, Code::INVALID_ARGUMENT);
    // The cgroup is taken: the first container keeps it.
    let taken = guest.create("other", guest.spec("true")).await.unwrap_err();
    assert!(status(taken).1.contains("file exists"));
    guest.start_process("box", "").await.unwrap();
    guest
        .add("box", "e", shell("sleep 1000"), outputs())
        .await
        .unwrap();
    let again = guest
        .add("box", "e", shell("true"), outputs())
        .await
        .unwrap_err();
    assert_eq!(status(again).0, Code::ALREADY_EXISTS);
    let unknown = guest
        .add("none", "e", shell("true"), outputs())
        .await
        .unwrap_err();
    assert_eq!(status(unknown).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_stopped_container_is_not_joined() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("true")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    guest.wait("box", "").await;
    let late = guest
        .add("box", "e", shell("true"), outputs())
        .await
        .unwrap_err();
    assert_eq!(status(late).0, Code::FAILED_PRECONDITION);
    let mut spec = guest.spec("true");
    spec.namespaces[0] = of(Kind::PID, "box");
    let late = guest.create("other", spec).await.unwrap_err();
    assert_eq!(status(late).0, Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_failing_step_names_itself_and_leaves_nothing() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    type Spoil = fn(&mut casemate_protocol::agent::ContainerSpec);
    let cases: [(Spoil, &str); 5] = [
        (
            |spec| spec.rootfs = "/no/rootfs".into(),
            "open /no/rootfs: no such file or directory",
        ),
        (
            |spec| spec.mounts[0].fstype = "nofs".into(),
            "error mounting \"proc\" to rootfs at \"/proc\": no such device",
        ),
        (
            |spec| drop(spec.sysctls.insert("kernel.nothing".into(), "1".into())),
            "write sysctl key kernel.nothing: no such file or directory",
        ),
        (
            |spec| {
                drop(
                    spec.cgroup
                        .mut_or_insert_default()
                        .settings
                        .insert("pids.none".into(), "1".into()),
                )
            },
            "set pids.none of the cgroup to \"1\": no such file or directory",
        ),
        (
            |spec| spec.process.mut_or_insert_default().oom_score_adj = Some(5000),
            "oom_score_adj: invalid argument",
        ),
    ];
    for (spoil, why) in cases {
        let mut spec = guest.spec("true");
        spoil(&mut spec);
        let (_, text) = status(guest.create("box", spec).await.unwrap_err());
        assert!(text.ends_with(why), "{text}");
        assert!(!guest.cgroup().join("pod/box").exists(), "{why}");
    }
    let (exit, _, _) = guest.run(guest.spec("true")).await;
    assert_eq!(exit, 0);
}
