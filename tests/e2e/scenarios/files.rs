//! Files that a container writes are on the host as it wrote them, and what the
//! host writes is in the container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::{BUSYBOX, DEBIAN, Host, Podman, Scenario, podman::volume, scenarios, wait};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        written_to_a_volume,
        written_to_the_root,
        read_from_the_host,
        changes_of_the_host,
        mounts_below_a_volume,
        renamed_and_removed,
        truncated_and_appended,
        mapped,
        locked,
        many_small_files,
    ]
}

/// Makes one of each kind below the current folder.
const MAKE: &str = "
    umask 022
    printf 'plain\\n' >file; chmod 640 file; chown 1234:2345 file
    printf x >suid; chmod 4755 suid
    mkdir -m 1777 folder; printf deep >folder/deep
    ln -s file symbolic; ln file hard; mkfifo -m 600 fifo
    setfattr -n user.colour -v green file; setfattr -n user.empty folder
    truncate -s 10M sparse; touch -d @1000000000 old; printf '' >'näme with space'
";

/// Looks at them from outside.
fn check_made(folder: &Path) -> Result<()> {
    let meta =
        |name: &str| fs::symlink_metadata(folder.join(name)).with_context(|| name.to_owned());
    let mode = |name: &str| -> Result<u32> { Ok(meta(name)?.mode() & 0o7777) };
    let file = meta("file")?;
    ensure!(fs::read_to_string(folder.join("file"))? == "plain\n");
    ensure!(
        (file.uid(), file.gid(), mode("file")?) == (1234, 2345, 0o640),
        "{file:?}"
    );
    ensure!(mode("suid")? == 0o4755, "suid is {:o}", mode("suid")?);
    ensure!(mode("folder")? == 0o1777 && meta("folder")?.uid() == 0);
    ensure!(fs::read_to_string(folder.join("folder/deep"))? == "deep");
    ensure!(fs::read_link(folder.join("symbolic"))? == PathBuf::from("file"));
    ensure!(
        meta("hard")?.ino() == file.ino() && file.nlink() == 2,
        "{file:?}"
    );
    ensure!(meta("fifo")?.file_type().is_fifo() && mode("fifo")? == 0o600);
    let attribute = |name: &str, key: &str| xattr::get(folder.join(name), key);
    ensure!(attribute("file", "user.colour")?.as_deref() == Some(b"green".as_slice()));
    ensure!(attribute("folder", "user.empty")?.as_deref() == Some(b"".as_slice()));
    ensure!(meta("sparse")?.len() == 10 << 20 && meta("sparse")?.blocks() < 1000);
    ensure!(meta("old")?.mtime() == 1_000_000_000);
    ensure!(folder.join("näme with space").exists());
    Ok(())
}

fn written_to_a_volume(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    in_volume(host, &data, DEBIAN, MAKE)?;
    check_made(&data)
}

/// What is mounted below a volume is in the container, and still on the host when
/// the container is gone; as on most hosts, the volume's mount is shared.
fn mounts_below_a_volume(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    let path = data.to_str().context("a path in UTF-8")?;
    let below = format!("{path}/below");
    let mount = |words: &[&str]| host.command("mount").args(words).run()?.ok();
    mount(&["-t", "tmpfs", "tmpfs", path])?;
    mount(&["--make-shared", path])?;
    fs::create_dir(&below)?;
    mount(&["-t", "tmpfs", "tmpfs", &below])?;
    fs::write(data.join("below/file"), "precious")?;
    let podman = Podman::new(host)?;
    let volume = format!("--volume={path}:/data");
    let run = podman.run(["--rm", &volume, BUSYBOX, "cat", "/data/below/file"])?;
    ensure!(run.run()?.ok()?.text() == "precious");
    ensure!(fs::read_to_string(data.join("below/file"))? == "precious");
    for place in [&*below, path] {
        host.command("umount").arg(place).run()?.ok()?;
    }
    Ok(())
}

/// The container's own root is on the host as long as the container is.
fn written_to_the_root(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script =
        format!("mkdir /made; cd /made; {MAKE} rm /etc/debian_version; echo changed >/etc/issue");
    let name = host.new_id();
    podman
        .run(["--name", &name, DEBIAN, "sh", "-ec", &script])?
        .run()?
        .ok()?;
    let upper = PathBuf::from(podman.inspect(&name, "{{.GraphDriver.Data.UpperDir}}")?);
    check_made(&upper.join("made"))?;
    ensure!(fs::read_to_string(upper.join("etc/issue"))? == "changed\n");
    let changes = podman.command(["diff", &name])?.run()?.ok()?;
    ensure!(
        changes.text().contains("D /etc/debian_version"),
        "{changes}"
    );
    podman.command(["rm", &name])?.run()?.ok()?;
    Ok(())
}

/// The container sees owner, mode, attributes and kind of what the host made.
fn read_from_the_host(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    host.command("sh")
        .args(["-ec", MAKE_ON_HOST])
        .folder(&data)
        .run()?
        .ok()?;
    xattr::set(data.join("file"), "user.colour", b"green")?;
    let script = "stat -c '%n %a %u:%g %s %F %h %Y' file folder fifo symbolic; readlink symbolic; cat file hard; \
                  getfattr --only-values -n user.colour file";
    let text = in_volume(host, &data, DEBIAN, script)?;
    let expected = "file 640 1234:2345 6 regular file 2 1000000000\nfolder 1777 0:0 4096 directory 2 1000000000\n\
                    fifo 600 0:0 0 fifo 1 1000000000\nsymbolic 777 0:0 4 symbolic link 1 1000000000\nfile\n\
                    plain\nplain\ngreen";
    ensure!(text == expected, "{text}");
    Ok(())
}

const MAKE_ON_HOST: &str = "
    echo plain >file; chmod 640 file; chown 1234:2345 file; mkdir -m 1777 folder
    ln -s file symbolic; ln file hard; mkfifo -m 600 fifo
    touch -h -d @1000000000 file folder fifo symbolic
";

/// What the host changes while the container runs arrives there, soon.
fn changes_of_the_host(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    fs::write(data.join("word"), "first\n")?;
    let script = "cat word; touch ready; until grep -q second word; do sleep 0.1; done; \
                  until [ -e new ]; do sleep 0.1; done; cat new; until [ ! -e gone ]; do sleep 0.1; done; echo end";
    fs::write(data.join("gone"), "")?;
    let bind = volume(&data, "/data");
    let run = Podman::new(host)?
        .run(["--rm", &bind, "-w", "/data", BUSYBOX, "sh", "-ec", script])?
        .limit(Duration::from_secs(30))
        .start()?;
    let ready = data.join("ready");
    wait::until_true("the container to be ready", Duration::from_secs(20), || {
        Ok(ready.exists())
    })?;
    fs::write(data.join("word"), "second\n")?;
    fs::write(data.join("new"), "news\n")?;
    fs::remove_file(data.join("gone"))?;
    let run = run.finish()?.ok()?;
    ensure!(run.text() == "first\nnews\nend", "{run}");
    Ok(())
}

fn renamed_and_removed(host: &Host) -> Result<()> {
    let script = r#"
        echo 1 >a; echo 2 >b; mv a b; cat b; [ ! -e a ]
        mkdir d e; echo 3 >d/f; mv d/f e/g; cat e/g; rmdir d; mv e h; cat h/g
        echo open >u; exec 3<>u; rm u; [ ! -e u ]; cat <&3; echo more >&3
        perl -e 'open F, "+>", "v"; unlink "v"; syswrite F, "still"; seek F, 0, 0; read F, $x, 9; print "$x\n"'
        mkdir full; touch full/x; rmdir full 2>&1 | grep -o 'not empty'
    "#;
    let data = host.new_folder("data")?;
    let text = in_volume(host, &data, DEBIAN, script)?;
    ensure!(text == "1\n3\n3\nopen\nstill\nnot empty", "{text}");
    let mut names: Vec<_> = fs::read_dir(&data)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    ensure!(names == ["b", "full", "h"], "{names:?}");
    Ok(())
}

fn truncated_and_appended(host: &Host) -> Result<()> {
    let script = "
        seq 1000 >f; truncate -s 10 f; stat -c %s f; echo end >>f; tail -c 4 f; : >f; stat -c %s f
        for i in 1 2 3 4; do (for j in $(seq 50); do echo line$i >>log; done) & done; wait; wc -l <log
        printf 0123456789 >g; printf AB | dd of=g bs=1 seek=4 conv=notrunc status=none; cat g; fallocate -l 5M big; stat -c ' %s' big
    ";
    let data = host.new_folder("data")?;
    let text = in_volume(host, &data, DEBIAN, script)?;
    ensure!(text == "10\nend\n0\n200\n0123AB6789 5242880", "{text}");
    ensure!(
        fs::read_to_string(data.join("log"))?
            .lines()
            .all(|line| line.len() == 5)
    );
    Ok(())
}

/// A shared mapping is written through to the file, and sees it.
fn mapped(host: &Host) -> Result<()> {
    // mmap is 9, msync 26, read 0 on x86-64: read(2) writes into the mapping.
    let script = r#"
        open F, "+>", "page" or die; truncate F, 8192; pipe R, W; syswrite W, "mapped";
        my $at = syscall 9, 0, 8192, 3, 1, fileno F, 0; die "mmap: $!" if $at == -1;
        syscall(0, fileno R, $at + 4094, 6) == 6 or die "read: $!";
        syscall(26, $at, 8192, 4) == 0 or die "msync: $!";
        seek F, 4094, 0; read F, $x, 6; print "$x\n";
    "#;
    let data = host.new_folder("data")?;
    let text = in_volume(host, &data, DEBIAN, &format!("perl -e '{script}'"))?;
    ensure!(text == "mapped", "{text}");
    ensure!(fs::read(data.join("page"))?.get(4094..4100) == Some(b"mapped".as_slice()));
    Ok(())
}

/// A lock keeps another process of the container out until it is gone.
fn locked(host: &Host) -> Result<()> {
    let script = r#"
        exec 3>lock; flock 3; flock -n lock true || echo busy; flock -s -n lock true || echo busy
        (flock 4; echo second) 4>lock & sleep 0.3; echo first; flock -u 3; wait
        perl -e 'use Fcntl; $| = 1; open F, "+>", "p"; $whole = pack "s s l! l! l", F_WRLCK, 0, 0, 0, 0;
            $lock = $whole; fcntl(F, F_SETLK, $lock) or die "fcntl: $!";
            if (fork) { wait } else { $lock = $whole; fcntl(F, F_SETLK, $lock) or print "held\n" }'
    "#;
    let data = host.new_folder("data")?;
    let text = in_volume(host, &data, DEBIAN, script)?;
    ensure!(text == "busy\nbusy\nfirst\nsecond\nheld", "{text}");
    Ok(())
}

/// A few hundred files with content, listed and read again.
fn many_small_files(host: &Host) -> Result<()> {
    let script = "mkdir d; for i in $(seq 500); do echo $i >d/$i; done; ls d | wc -l; cat d/* | sort -n | md5sum; rm -r d/1*; ls d | wc -l";
    let data = host.new_folder("data")?;
    let text = in_volume(host, &data, BUSYBOX, script)?;
    ensure!(
        text == "500\n5705e3c0d0044b724281f9bcc7520d3a  -\n389",
        "{text}"
    );
    ensure!(fs::read_dir(data.join("d"))?.count() == 389);
    Ok(())
}

/// Runs a script in a folder of the host.
fn in_volume(host: &Host, data: &Path, image: &str, script: &str) -> Result<String> {
    let bind = volume(data, "/data");
    let arguments = ["--rm", &bind, "--workdir=/data", image, "sh", "-ec", script];
    Ok(Podman::new(host)?.run(arguments)?.run()?.ok()?.text())
}
