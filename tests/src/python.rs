use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{process::Command, sync::Mutex};

/// One installs, the others find it.
static INSTALLING: Mutex<()> = Mutex::const_new(());

/// The Python example with the packages it asks for, in a virtual environment that later runs find again.
#[derive(Debug)]
pub struct PythonExample {
    folder: PathBuf,
    python: PathBuf,
}

impl PythonExample {
    /// Installs the packages, unless they are there: below `.souk/tools`, as their hashes demand.
    ///
    /// # Errors
    /// When there is no Python with venv, or the packages cannot be had.
    pub async fn install() -> Result<Self> {
        let _installing = INSTALLING.lock().await;
        let folder = repository().join("crates/client/examples/python");
        let requirements = folder.join("requirements.txt");
        let environment = souk_devstack::souk_folder().join("tools/python-example");
        let version = run(Command::new("python3").arg("--version")).await?;
        let wanted = format!("{version}{}", fs::read_to_string(&requirements)?);
        let (installed, python) = (environment.join("installed.txt"), environment.join("bin/python"));
        if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
            let _ = fs::remove_dir_all(&environment);
            run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
                .await
                .context("no virtual environment (on Debian: apt-get install python3-venv)")?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--require-hashes", "-r"];
            run(Command::new(&python).args(pip).arg(&requirements)).await.context("the example's packages cannot be installed")?;
            fs::write(&installed, wanted)?;
        }
        Ok(Self { folder, python })
    }

    /// Runs the example against these addresses.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn run(&self, command: &str, query: &str) -> Result<Output> {
        let mut example = Command::new(&self.python);
        example.arg(self.folder.join("place_order.py")).args(["--command", command, "--query", query]);
        Ok(example.stdin(Stdio::null()).kill_on_drop(true).output().await?)
    }

    /// Runs the protoc that came with the packages.
    ///
    /// # Errors
    /// With what it says, when it fails.
    pub async fn protoc(&self, arguments: &[String]) -> Result<()> {
        run(Command::new(&self.python).args(["-m", "grpc_tools.protoc"]).args(arguments)).await.map(drop)
    }
}

/// The root of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

async fn run(command: &mut Command) -> Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = match command.stdin(Stdio::null()).kill_on_drop(true).output().await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no {program}: the Python example is tested with Python 3.10 or later")
        }
        output => output?,
    };
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
