//! Servers that people run, under load: each has its user, folders, volume and limits, serves
//! clients on the host through a published port, ends when it is asked to, and has its data
//! when it is started again.
//!
//! The clients are those of the image, run on the host in the image's root file system.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::docker::Release;
use casemate_e2e::expect::{contains, field};
use casemate_e2e::images::unpacked;
use casemate_e2e::network::http_get;
use casemate_e2e::wait::until_true;
use casemate_e2e::{APPLICATIONS, Command, Docker, Finished, Host, Podman, Scenario, scenarios};
use nix::sched::{CloneFlags, unshare};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![nginx, redis, postgres, with_docker20, with_docker28]
        .into_iter()
        .map(|scenario| scenario.limit(Duration::from_secs(600)))
        .collect()
}

/// How long a server may take to begin to serve, on a busy machine without virtualization.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between questions: a client costs as much as what its server does to begin.
const PAUSE: Duration = Duration::from_millis(500);

/// As long as a load may take at most.
const LOAD: Duration = Duration::from_secs(120);

fn nginx(host: &Host) -> Result<()> {
    serve_pages(&Engine::podman(host)?)
}

fn redis(host: &Host) -> Result<()> {
    keep_values(&Engine::podman(host)?)
}

fn postgres(host: &Host) -> Result<()> {
    keep_accounts(&Engine::podman(host)?)
}

fn with_docker20(host: &Host) -> Result<()> {
    with_docker(host, Release::V20)
}

fn with_docker28(host: &Host) -> Result<()> {
    with_docker(host, Release::V28)
}

fn with_docker(host: &Host, release: Release) -> Result<()> {
    let docker = Docker::start(host, release)?;
    docker.load(APPLICATIONS)?;
    let engine = Engine {
        host,
        client: Client::Docker(&docker),
    };
    serve_pages(&engine)?;
    keep_values(&engine)?;
    keep_accounts(&engine)?;
    docker.stop()
}

/// Waits until a server does what `probe` asks of it.
fn serves(what: &str, probe: impl Fn() -> Result<bool>) -> Result<()> {
    until_true(what, PATIENCE, || {
        let served = probe()?;
        if !served {
            sleep(PAUSE);
        }
        Ok(served)
    })
}

/// Where the web server is published.
const PAGES: &str = "127.0.0.1:18080";

/// A web server with a read-only root, its pages in a folder of the host.
fn serve_pages(engine: &Engine<'_>) -> Result<()> {
    let site = engine.host.new_folder("site")?;
    let page = "served\n".repeat(1000);
    fs::write(site.join("index.html"), &page)?;
    let server = engine.run(&[
        "--publish=18080:80",
        "--memory=512m",
        "--cpus=1",
        "--stop-signal=SIGQUIT",
        "--read-only",
        "--tmpfs=/run",
        "--tmpfs=/var/lib/nginx",
        "--tmpfs=/var/log/nginx",
        &format!("--volume={}:/var/www/html:ro", site.display()),
        APPLICATIONS,
        "nginx",
        "-g",
        "daemon off;",
    ])?;
    serves("the page", || {
        Ok(engine
            .fetch(PAGES)
            .is_ok_and(|text| text == page.trim_end()))
    })?;
    let url = format!("http://{PAGES}/");
    let load = ["--threads=2", "--connections=8", "--duration=5s", &url];
    let told = engine.load("wrk", &load)?;
    // wrk has no such lines when nothing has failed.
    ensure!(!told.text().contains("Socket errors"), "{told}");
    ensure!(!told.text().contains("Non-2xx"), "{told}");
    let requests = told.text();
    let requests = requests
        .lines()
        .find_map(|line| line.split_once(" requests in "));
    let requests: u32 = requests.context("wrk counts requests")?.0.trim().parse()?;
    ensure!(requests >= 100, "{told}");
    // What changes on the host is served at once.
    fs::write(site.join("index.html"), "changed")?;
    serves("the change", || Ok(engine.fetch(PAGES)? == "changed"))?;
    engine.stop(&server)?;
    engine.remove(&server)
}

/// A cache that is run by its user and saves its values when it ends.
fn keep_values(engine: &Engine<'_>) -> Result<()> {
    let server = engine.run(&[
        "--publish=16379:6379",
        "--memory=512m",
        "--cpus=1",
        "--user=redis",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--volume=values:/var/lib/redis",
        APPLICATIONS,
        "redis-server",
        "--dir",
        "/var/lib/redis",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "3600 1",
        "--unixsocket",
        "/tmp/redis.sock",
    ])?;
    let ask = |arguments: &[&str]| {
        let client = engine.client("redis-cli")?;
        client.args(["-p", "16379"]).args(arguments).run()
    };
    let answers = || Ok(ask(&["ping"])?.text() == "PONG");
    serves("Redis", answers)?;
    let load = [
        "-p",
        "16379",
        "-n",
        "5000",
        "-c",
        "10",
        "-t",
        "set,get,lpush",
        "--csv",
    ];
    let told = engine.load("redis-benchmark", &load)?;
    for test in ["SET", "GET", "LPUSH"] {
        let rate = field(&told.text(), &format!("\"{test}\",\""))?.to_owned();
        let rate: f64 = rate.split('"').next().unwrap_or_default().parse()?;
        ensure!(rate > 50.0, "{told}");
    }
    ensure!(told.errors().is_empty(), "{told}");
    ask(&["set", "kept", "yes"])?.ok()?;
    let length = ask(&["llen", "mylist"])?.ok()?.text();
    ensure!(length == "5000", "{length}");
    let inside = engine.command(&[
        "exec",
        &server,
        "redis-cli",
        "-s",
        "/tmp/redis.sock",
        "get",
        "kept",
    ])?;
    ensure!(inside.run()?.ok()?.text() == "yes");
    engine.stop(&server)?;
    engine.start(&server)?;
    serves("Redis again", answers)?;
    let kept = [ask(&["get", "kept"])?, ask(&["llen", "mylist"])?];
    ensure!(
        kept[0].text() == "yes" && kept[1].text() == "5000",
        "{kept:?}"
    );
    engine.stop(&server)?;
    engine.remove(&server)
}

/// As images of databases do: root gives the volume to the server's user, who makes the
/// cluster when there is none, and serves.
const DATABASE: &str = "set -e; bin=$(echo /usr/lib/postgresql/*/bin); data=/var/lib/postgresql/data; \
    as='setpriv --reuid=postgres --regid=postgres --init-groups'; \
    if [ ! -s $data/PG_VERSION ]; then \
        chown postgres:postgres /var/lib/postgresql; \
        $as $bin/initdb --pgdata=$data --auth=trust >/dev/null; \
        echo 'host all all all trust' >>$data/pg_hba.conf; \
    fi; \
    exec $as $bin/postgres -D $data -c listen_addresses='*' -c unix_socket_directories=/tmp";

/// A database whose accounts are right after a load, and after a restart.
fn keep_accounts(engine: &Engine<'_>) -> Result<()> {
    let server = engine.run(&[
        "--publish=15432:5432",
        "--memory=512m",
        "--cpus=1",
        "--shm-size=128m",
        // A fast shutdown.
        "--stop-signal=SIGINT",
        "--volume=accounts:/var/lib/postgresql",
        APPLICATIONS,
        "sh",
        "-c",
        DATABASE,
    ])?;
    let ask = |query: &str| {
        let client = engine.client("psql")?.args(AT_DATABASE);
        client.args(["-At", "-c", query]).run()
    };
    let answers = || Ok(ask("select 1")?.text() == "1");
    serves("PostgreSQL", answers)?;
    let fill = [&AT_DATABASE[..], &["--initialize", "--quiet"]].concat();
    engine.load("pgbench", &fill)?;
    let load = ["--client=4", "--time=6", "--no-vacuum"];
    let told = engine.load("pgbench", &[&AT_DATABASE[..], &load].concat())?;
    let text = told.text();
    contains(&text, "number of failed transactions: 0 (0.000%)")?;
    let done = field(&text, "number of transactions actually processed:")?;
    let done: u32 = done.parse()?;
    ensure!(done >= 20, "{told}");
    // Every transaction moves the same amount in all of them, and leaves a line.
    let sums = "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts), \
        sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history";
    let expected = format!("{done}|t|t");
    let found = ask(sums)?;
    ensure!(found.text() == expected, "{found}: {expected} was expected");
    let inside = [
        "exec",
        "--user=postgres",
        &server,
        "psql",
        "-h",
        "/tmp",
        "-Atc",
        "show data_sync_retry",
    ];
    engine.command(&inside)?.run()?.ok()?;
    engine.stop(&server)?;
    engine.start(&server)?;
    serves("PostgreSQL again", answers)?;
    let found = ask(sums)?;
    ensure!(found.text() == expected, "{found}: {expected} was expected");
    let log = engine.command(&["logs", &server])?.run()?.ok()?;
    let log = format!("{}{}", log.text(), log.errors());
    // It ended in order: there was nothing to recover.
    contains(&log, "database system was shut down at")?;
    ensure!(!log.contains("was not properly shut down"), "{log}");
    engine.stop(&server)?;
    engine.remove(&server)
}

const AT_DATABASE: [&str; 3] = ["--host=127.0.0.1", "--port=15432", "--username=postgres"];

/// The client of the runtime.
enum Client<'h> {
    Podman(Box<Podman<'h>>),
    Docker(&'h Docker<'h>),
}

/// A client, and the host as it is beside its containers.
struct Engine<'h> {
    host: &'h Host,
    client: Client<'h>,
}

impl<'h> Engine<'h> {
    /// Podman in a network of the scenario's own.
    fn podman(host: &'h Host) -> Result<Engine<'h>> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        let up = host.command("ip").args(["link", "set", "lo", "up"]);
        up.run()?.ok()?;
        let client = Client::Podman(Box::new(Podman::new(host)?));
        Ok(Engine { host, client })
    }

    fn command(&self, arguments: &[&str]) -> Result<Command<'_>> {
        match &self.client {
            Client::Podman(podman) => podman.command(arguments),
            Client::Docker(docker) => Ok(docker.command(arguments)),
        }
    }

    /// Starts a container and gives its id.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let parent = format!("--cgroup-parent=/{}", self.host.cgroup);
        let mut all = vec!["run", "--detach"];
        if let Client::Podman(_) = self.client {
            all.extend(["--network=bridge", &parent]);
        }
        all.extend(arguments);
        Ok(self.command(&all)?.run()?.ok()?.text())
    }

    fn start(&self, container: &str) -> Result<()> {
        self.command(&["start", container])?.run()?.ok()?;
        Ok(())
    }

    /// Asks a server to end, which it does well and before it is killed.
    fn stop(&self, container: &str) -> Result<()> {
        let stop = self.command(&["stop", "--time=50", container])?;
        stop.run()?.ok()?;
        let state = "{{.State.Status}} {{.State.ExitCode}}";
        let inspect = ["inspect", "--format", state, container];
        let found = self.command(&inspect)?.run()?.ok()?;
        ensure!(found.text() == "exited 0", "{found}");
        Ok(())
    }

    /// Removes a container that has ended, and its volumes.
    fn remove(&self, container: &str) -> Result<()> {
        self.command(&["rm", container])?.run()?.ok()?;
        let left = self.command(&["volume", "ls", "--quiet"])?.run()?.ok()?;
        for volume in left.text().lines() {
            self.command(&["volume", "rm", volume])?.run()?.ok()?;
        }
        Ok(())
    }

    /// A program of the host, where the published ports are.
    fn beside(&self, program: &str) -> Result<Command<'_>> {
        match &self.client {
            Client::Podman(_) => Ok(self.host.command(program)),
            Client::Docker(docker) => docker.beside(program),
        }
    }

    /// What a web server says to who asks for `/`.
    fn fetch(&self, address: &str) -> Result<String> {
        match &self.client {
            Client::Podman(_) => http_get(address),
            Client::Docker(docker) => docker.fetch(address),
        }
    }

    /// A program of the image, on the host.
    fn client(&self, program: &str) -> Result<Command<'_>> {
        let root = unpacked(self.host, APPLICATIONS)?;
        let line = self.beside("chroot")?.env("PGDATABASE", "postgres");
        Ok(line.arg(&root).arg(program).limit(LOAD))
    }

    /// Runs a load to its end.
    fn load(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        self.client(program)?.args(arguments).run()?.ok()
    }
}
