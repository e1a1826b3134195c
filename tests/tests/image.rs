//! The image, in a Docker engine: `just image-test`. Every service and the CLI run from it as they do in a cluster: not as root, on a root
//! file system that is read-only, without capabilities, finding their servers by name and Postgres behind TLS.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use souk_devstack::{DatabaseUrl, RegionIdentity, Service, Stack, TemporaryFolder, readiness};
use souk_tests::until;
use sqlx::PgPool;
use tokio::{net::UdpSocket, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(60);
/// A name that only the test's own name server knows.
const HOST: &str = "machine.souk.test";
/// Where it answers; the resolver asks at port 53 alone, and this loopback address is nobody else's.
const NAME_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 153)), 53);
/// Whom the image runs as.
const USER: &str = "65532";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Docker engine and the image: just image-test"]
async fn every_service_runs_from_the_image_as_nobody_on_a_root_that_is_read_only() -> Result<()> {
    let inspected: Value = serde_json::from_slice(&docker(&["image", "inspect", &image()])?.stdout)?;
    ensure!(inspected[0]["Config"]["User"] == "65532:65532", "the image runs as {}", inspected[0]["Config"]["User"]);
    let names = name_server().await?;
    let certificates = Certificates::make()?;
    let mut stack = Stack::temporary(|options| {
        // A region by name has a replicator, too.
        options.region = Some(RegionIdentity { name: "one".into(), number: 1, token_key: None });
        options.postgres_settings.extend(certificates.settings());
    })
    .await?;
    for (side, databases) in [("write", stack.write_databases()), ("read", stack.read_databases())] {
        stack.lead_to(side, databases.into_iter().map(|database| DatabaseUrl { url: by_name(&database.url), ..database }))?;
    }
    stack.set("nats.url", stack.nats.url().replace("127.0.0.1", HOST))?;
    stack.set("process.migrate", false)?;
    let files = Files::write(&stack, &certificates)?;

    let mut containers = Vec::new();
    for service in Service::ALL {
        let name = service.name();
        let container = Container::start(name, &files.with_authority(), &[&format!("souk-{name}"), "--config", "/etc/souk/souk.toml"])?;
        containers.push((service, container));
    }
    let souk = |arguments: &[&str]| docker_run(&["--rm"], &files.with_authority(), &[&["souk"], arguments].concat());
    souk(&["migrate", "--config", "/etc/souk/souk.toml", "--patience", "1m"])?;
    for (service, container) in &containers {
        let port = stack.ports_of(*service)?.ops;
        let ready = until("ready", PATIENCE, || async { Ok(readiness(port).await.is_ok_and(|lacks| lacks.is_none()).then_some(())) });
        ready.await.with_context(|| container.logs())?;
        container.check_confinement()?;
    }

    let url = |name: &str| format!("http://{HOST}:{}", stack.port(name));
    let (command, query) = (url("command"), url("query"));
    for arguments in [&["demo", "--command", &command, "--query", &query][..], &["audit", "--config", "/etc/souk/souk.toml"]] {
        println!("{}", String::from_utf8_lossy(&souk(arguments)?.stdout));
    }

    let pool = PgPool::connect(&stack.write_databases()[0].url).await?;
    let open = "select count(*) from pg_stat_activity join pg_stat_ssl using (pid) where application_name like 'souk-%' and ssl = $1";
    let encrypted: i64 = sqlx::query_scalar(open).bind(true).fetch_one(&pool).await?;
    let plain: i64 = sqlx::query_scalar(open).bind(false).fetch_one(&pool).await?;
    ensure!(encrypted > 0 && plain == 0, "{encrypted} connections with TLS, {plain} without");

    for (service, container) in containers {
        container.stop().with_context(|| format!("{} did not drain", service.name()))?;
    }
    // The authorities of the image are those of the public; what none of them signed is refused.
    let stranger = Container::start("stranger", &files.without_authority(), &["souk-command", "--config", "/etc/souk/souk.toml"])?;
    until("refused", PATIENCE, || async { Ok(stranger.logs().contains("UnknownIssuer").then_some(())) })
        .await
        .with_context(|| stranger.logs())?;
    names.abort();
    Ok(())
}

fn image() -> String {
    std::env::var("SOUK_IMAGE").unwrap_or_else(|_| "souk:debug".to_owned())
}

fn by_name(url: &str) -> String {
    url.replace("127.0.0.1", HOST).replace("sslmode=disable", "sslmode=verify-full")
}

fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot start {program}"))?;
    let told = || String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), told());
    Ok(output)
}

fn docker(arguments: &[&str]) -> Result<Output> {
    run("docker", arguments)
}

/// As the chart's pods, in the network of this machine.
const CONFINED: [&str; 8] =
    ["--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pull=never"];

/// `docker run` of a command in the image.
fn docker_run(head: &[&str], mounts: &[String], command: &[&str]) -> Result<Output> {
    let (image, volumes) = (image(), mounts.iter().flat_map(|mount| ["--volume", mount]).collect::<Vec<_>>());
    docker(&[&["run"], head, &CONFINED[..], &volumes, &[&image], command].concat())
}

/// A process from the image; killed and removed when dropped.
struct Container(String);

impl Container {
    fn start(name: &str, mounts: &[String], command: &[&str]) -> Result<Self> {
        let container = Self(format!("souk-image-test-{}-{name}", std::process::id()));
        docker_run(&["--detach", "--name", &container.0], mounts, command)?;
        Ok(container)
    }

    fn logs(&self) -> String {
        let said = Command::new("docker").args(["logs", "--tail", "30", &self.0]).output();
        said.map_or_else(|error| error.to_string(), |said| String::from_utf8_lossy(&said.stderr).into_owned())
    }

    /// What the kernel says of the process, rather than what was asked for.
    fn check_confinement(&self) -> Result<()> {
        let pid = String::from_utf8(docker(&["inspect", "--format", "{{.State.Pid}}", &self.0])?.stdout)?;
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
        let ids =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        ensure!(ids("Uid:") == [USER; 4] && ids("Gid:") == [USER; 4], "{} runs as {:?} {:?}", self.0, ids("Uid:"), ids("Gid:"));
        ensure!(ids("CapEff:") == ["0000000000000000"], "{} may {:?}", self.0, ids("CapEff:"));
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", pid.trim()))?;
        let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[1] == "/").context("no root")?;
        ensure!(root[3].split(',').any(|option| option == "ro"), "{} may write its root: {root:?}", self.0);
        Ok(())
    }

    /// Lets it drain; its exit code says whether it did.
    fn stop(self) -> Result<()> {
        docker(&["stop", "--time", "30", &self.0])?;
        let code = String::from_utf8(docker(&["wait", &self.0])?.stdout)?;
        ensure!(code.trim() == "0", "exit code {}\n{}", code.trim(), self.logs());
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", &self.0]).output();
    }
}

/// An authority of the test's own, and what it signed for the database server.
struct Certificates {
    folder: TemporaryFolder,
}

impl Certificates {
    fn make() -> Result<Self> {
        let certificates = Self { folder: TemporaryFolder::create()? };
        let file = |name: &str| certificates.file(name).display().to_string();
        let (authority, authority_key, key) = (file("ca.crt"), file("ca.key"), file("server.key"));
        let (request, extension, certificate) = (file("server.csr"), file("server.ext"), file("server.crt"));
        fs::set_permissions(certificates.folder.path(), fs::Permissions::from_mode(0o755))?;
        fs::write(&extension, format!("subjectAltName=DNS:{HOST}\n"))?;
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let openssl = |head: &[&str], tail: &[&str]| run("openssl", &[head, tail].concat());
        let subject = format!("/CN={HOST}");
        openssl(
            &[&["req", "-x509", "-days", "2"], &new_key[..]].concat(),
            &["-subj", "/CN=Souk test", "-keyout", &authority_key, "-out", &authority],
        )?;
        openssl(&[&["req"], &new_key[..]].concat(), &["-subj", &subject, "-keyout", &key, "-out", &request])?;
        let signed = ["-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial", "-extfile", &extension, "-out", &certificate];
        openssl(&["x509", "-req", "-days", "2", "-in", &request], &signed)?;
        // Postgres wants the key to be its own and nobody else's. Root runs it as one of these, as the devstack does.
        let _ = ["postgres", "nobody"].iter().any(|user| run("chown", &[user, &key]).is_ok());
        Ok(certificates)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self) -> [(String, String); 3] {
        let file = |name: &str| self.file(name).display().to_string();
        [("ssl", "on".to_owned()), ("ssl_cert_file", file("server.crt")), ("ssl_key_file", file("server.key"))]
            .map(|(name, value)| (name.to_owned(), value))
    }
}

/// What is mounted into containers, readable for whom they run as.
struct Files {
    folder: TemporaryFolder,
}

impl Files {
    fn write(stack: &Stack, certificates: &Certificates) -> Result<Self> {
        let files = Self { folder: TemporaryFolder::create()? };
        fs::set_permissions(files.folder.path(), fs::Permissions::from_mode(0o755))?;
        files.add("souk.toml", &fs::read(stack.settings_file())?)?;
        files.add("resolv.conf", format!("nameserver {}\n", NAME_SERVER.ip()).as_bytes())?;
        files.add("ca.crt", &fs::read(certificates.file("ca.crt"))?)?;
        Ok(files)
    }

    fn add(&self, name: &str, content: &[u8]) -> Result<()> {
        let file = self.folder.path().join(name);
        fs::write(&file, content)?;
        Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o644))?)
    }

    fn without_authority(&self) -> Vec<String> {
        vec![mount(self.folder.path(), "souk.toml", "/etc/souk/souk.toml"), mount(self.folder.path(), "resolv.conf", "/etc/resolv.conf")]
    }

    fn with_authority(&self) -> Vec<String> {
        let authority = mount(self.folder.path(), "ca.crt", "/etc/ssl/certs/ca-certificates.crt");
        self.without_authority().into_iter().chain([authority]).collect()
    }
}

fn mount(folder: &Path, file: &str, place: &str) -> String {
    format!("{}:{place}:ro", folder.join(file).display())
}

/// A name server (RFC 1035) that knows one name, for what asks as the C library does.
async fn name_server() -> Result<JoinHandle<()>> {
    let socket = UdpSocket::bind(NAME_SERVER).await.with_context(|| format!("cannot answer for names at {NAME_SERVER}; only root may"))?;
    Ok(tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            if let Some(answer) = answer(&packet[..length]) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }))
}

/// Header, the question as it came, and 127.0.0.1 if the question is for an address (type A) of the name.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let question = query.get(12..end)?;
    let name: Vec<u8> = HOST.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect();
    let known = question.starts_with(&name);
    let found = known && question[name.len()..] == [0, 1, 0, 1];
    let mut answer = query[..2].to_vec();
    // An answer, recursion available; no error, or no such name. One question, as many answers as there are.
    answer.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(question);
    if found {
        // The name of the question, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
