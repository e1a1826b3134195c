use std::path::{Path, PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    error::{Actual, Kind},
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use super::{Settings, validate};

const PREFIX: &str = "SOUK_";

/// What is wrong with the settings: one line that names the file or the environment key, and the value unless it is
/// secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }
}

impl Settings {
    /// Reads `file`, then the environment over it, and checks every value.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| ConfigError::new(format!("{}: {error}", path.display())));
        let text = file.map(read).transpose()?.unwrap_or_default();
        Sources::new(file, &text, Environment(std::env::vars().collect())).settings()
    }

    /// Reads only `text`, as TOML: for tools and tests that make settings themselves.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Sources::new(None, text, Environment(Vec::new())).settings()
    }
}

struct Sources {
    figment: Figment,
    file: Option<PathBuf>,
}

/// Variables such as `SOUK_grpc__default_deadline`. Every setting lies in a section, so its key has two underscores;
/// Kubernetes puts SOUK_COMMAND_PORT and the like beside ours for services of these names, which are not settings.
struct Environment(Vec<(String, String)>);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment")
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let mut settings = Dict::new();
        for (name, text) in &self.0 {
            if let Some(key) = name.strip_prefix(PREFIX).filter(|key| key.contains("__")) {
                let Ok(value) = text.parse();
                let key = key.to_ascii_lowercase();
                insert(&mut settings, &key.split("__").collect::<Vec<_>>(), value);
            }
        }
        Ok(Profile::Default.collect(settings))
    }
}

fn insert(settings: &mut Dict, key: &[&str], value: Value) {
    let [first, rest @ ..] = key else { return };
    if rest.is_empty() {
        settings.insert((*first).to_owned(), value);
        return;
    }
    let section = settings.entry((*first).to_owned()).or_insert_with(|| Dict::new().into());
    if let Value::Dict(_, section) = section {
        insert(section, rest, value);
    }
}

impl Sources {
    fn new(file: Option<&Path>, text: &str, environment: Environment) -> Self {
        Self { figment: Figment::new().merge(Toml::string(text)).merge(environment), file: file.map(Path::to_owned) }
    }

    fn settings(&self) -> Result<Settings, ConfigError> {
        let settings: Settings = self.figment.extract().map_err(|error| self.explain(error))?;
        validate::check(&settings).map_err(|problem| self.locate(&problem.key, &problem.complaint))?;
        Ok(settings)
    }

    /// Names the place where `key` (with dots) was set.
    fn locate(&self, key: &str, complaint: &str) -> ConfigError {
        let section = key.split(['[', ']']).next().unwrap_or(key);
        self.line(self.figment.find_metadata(section), key, complaint)
    }

    fn line(&self, source: Option<&Metadata>, key: &str, complaint: &str) -> ConfigError {
        let environment = format!("{PREFIX}{}", key.replace('.', "__"));
        let place = match (source, &self.file) {
            (Some(source), _) if source.name == "environment" => environment,
            (Some(_), Some(file)) => format!("{}: {key}", file.display()),
            (_, Some(file)) => format!("{}: {key} (or {environment})", file.display()),
            (_, None) => environment,
        };
        ConfigError(format!("{place}: {complaint}"))
    }

    fn explain(&self, error: figment::Error) -> ConfigError {
        let mut key = error.path.join(".");
        let secret = error.path.iter().any(|part| part == "token_key" || part == "url" || part == "databases");
        let complaint = match &error.kind {
            Kind::MissingField(field) => {
                // The one section without a default, for the sake of the one setting without.
                key = if field == "installation" { "installation.token_key".to_owned() } else { join(&key, field) };
                "is missing".to_owned()
            }
            Kind::UnknownField(field, known) => {
                if error.path.last().is_none_or(|last| last != field) {
                    key = join(&key, field);
                }
                format!("unknown key; known here: {}", known.join(", "))
            }
            Kind::InvalidType(_, want) | Kind::InvalidValue(_, want) if secret => format!("want {want} (value not shown)"),
            Kind::InvalidType(found, want) | Kind::InvalidValue(found, want) => format!("{} is not {want}", shown(found)),
            Kind::UnknownVariant(found, known) => format!("{found:?} is none of {}", known.join(", ")),
            // What is said of a file names the file and nothing in it.
            Kind::Message(message) if secret && message.starts_with("cannot read ") => one_line(message),
            Kind::Message(message) if secret && message.starts_with("a string or ") => format!("want {message} (value not shown)"),
            Kind::Message(_) if secret => "malformed (value not shown)".to_owned(),
            Kind::Message(message) => one_line(message),
            other => one_line(&other.to_string()),
        };
        if key.is_empty() {
            let file = self.file.as_ref().map_or_else(|| "settings".to_owned(), |file| file.display().to_string());
            return ConfigError(format!("{file}: {complaint}"));
        }
        let source = if error.missing() { None } else { error.metadata.as_ref() };
        self.line(source, &key, &complaint)
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn shown(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("{value:?}"),
        other => other.to_string(),
    }
}

/// A TOML error quotes the line it stumbled over, which may hold a password: those lines carry a '|'.
fn one_line(message: &str) -> String {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|')).collect();
    lines.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

    /// Loads `toml` and `environment` in a jail and gives the line it is refused with.
    fn refusal(toml: &str, environment: &[(&str, &str)]) -> String {
        load(toml, environment).expect_err("accepted")
    }

    fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let sources = Sources::new(Some(Path::new("souk.toml")), toml, Environment(environment));
        sources.settings().map_err(|error| error.to_string())
    }

    fn minimal() -> String {
        format!("[installation]\ntoken_key = \"{KEY}\"\n")
    }

    #[test]
    fn a_file_and_the_environment_over_it_make_the_settings() {
        let toml = format!("{}[grpc]\ndefault_deadline = \"2s\"\nmax_connections = 7\n", minimal());
        let environment = [
            ("SOUK_grpc__default_deadline", "3s"),
            ("SOUK_WRITE__DATABASES", r#"[{name="w0", url="postgres://u:hunter2@h/d"}]"#),
            ("SOUK_COMMAND_PORT", "tcp://10.0.0.1:50051"),
        ];
        let settings = load(&toml, &environment).unwrap();
        assert_eq!(settings.grpc.default_deadline.as_secs(), 3);
        assert_eq!(settings.grpc.max_connections, 7);
        assert_eq!(settings.grpc.max_concurrent_streams, 256);
        assert_eq!((settings.write.databases.len(), settings.write.databases[0].max_connections), (1, 10));
        assert!(settings.installation.token_key().mac("x", b"y") == souk_event_sourcing::TokenKey::new([1; 32]).mac("x", b"y"));
        let printed = format!("{settings:?}");
        assert!(!printed.contains(KEY) && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let line = refusal(&format!("{}[grpc]\nmax_conections = 7\n", minimal()), &[]);
        assert!(line.starts_with("souk.toml: grpc.max_conections: unknown key; known here: max_concurrent_streams, "), "{line}");
        let line = refusal(&minimal(), &[("SOUK_grpc__tiemout", "3s")]);
        assert!(line.starts_with("SOUK_grpc__tiemout: unknown key; known here: "), "{line}");
        let line = refusal(&format!("colour = 1\n{}", minimal()), &[]);
        assert!(line.starts_with("souk.toml: colour: unknown key; known here: installation, process, listen, "), "{line}");
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        let cases = [
            ("grpc.max_connections", "[grpc]\nmax_connections = \"many\"\n", r#"souk.toml: grpc.max_connections: "many" is not usize"#),
            ("grpc.default_deadline", "[grpc]\ndefault_deadline = \"5 parsecs\"\n", "souk.toml: grpc.default_deadline: "),
            ("telemetry", "[telemetry]\nlog_format = \"xml\"\n", "souk.toml: telemetry.log_format: \"xml\" is none of human, json"),
            ("payment", "[command]\npayment_window = \"29days\"\n", "souk.toml: command.payment_window: 29days is not at most 28days"),
            ("pace", "[projector]\nbatch_interval = \"2s\"\n", "souk.toml: projector.batch_interval: 2s is not at most a second"),
            ("listen", "[listen]\ncommand = \"here\"\n", "souk.toml: listen.command: "),
        ];
        for (name, toml, start) in cases {
            let line = refusal(&format!("{}{toml}", minimal()), &[]);
            assert!(line.starts_with(start), "{name}: {line}");
            assert!(!line.contains('\n'));
        }
        let line = refusal(&minimal(), &[("SOUK_installation__partitions", "0")]);
        assert_eq!(line, "SOUK_installation__partitions: 0 is not in 1..=4096");
        let line = refusal(&format!("{}[command]\nlease_ttl = \"1s\"\n", minimal()), &[]);
        assert_eq!(line, "souk.toml: command.lease_ttl: 1s is not at least twice the heartbeat_interval of 2s");
        let line = refusal(&format!("{}[saga]\nlease_ttl = \"1s\"\n", minimal()), &[]);
        assert_eq!(line, "souk.toml: saga.lease_ttl: 1s is not at least twice the heartbeat_interval of 1s");
        let line = refusal(&format!("{}[saga]\nheartbeat_interval = \"0s\"\n", minimal()), &[]);
        assert_eq!(line, "souk.toml: saga.heartbeat_interval: 0s is not longer than zero");
    }

    #[test]
    fn secrets_are_never_printed() {
        for (toml, start) in [
            ("[installation]\ntoken_key = \"c0ffee\"\n".to_owned(), "souk.toml: installation.token_key: want 64 hexadecimal digits"),
            ("[installation]\ntoken_key = 12345678\n".to_owned(), "souk.toml: installation.token_key: want a string"),
            (format!("{}[write]\ndatabases = [{{name=\"w\", url=\"c0ffee\"}}]\n", minimal()), "souk.toml: write.databases[0].url: "),
            (format!("{}[nats]\nurl = \"c0ffee:12345678\"\n", minimal()), "souk.toml: nats.url: "),
            ("[installation]\ntoken_key = c0ffee\n".to_owned(), "souk.toml: TOML parse error at line 2"),
        ] {
            let line = refusal(&toml, &[]);
            assert!(line.starts_with(start), "{line}");
            assert!(!line.contains("c0ffee") && !line.contains("12345678") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_secret_may_lie_in_a_file() {
        let folder = std::env::temp_dir().join(format!("souk-secret-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            format!("{{ file = {:?} }}", path.display().to_string())
        };
        let (key, url, nats) =
            (write("key", &format!("{KEY}\n")), write("url", "postgres://u:hunter2@h/d"), write("nats", "nats://n:4222\r\n"));
        let toml = format!(
            "[installation]\ntoken_key = {key}\n[write]\ndatabases = [{{ name = \"w0\", url = {url}, pooled_url = {url} }}]\n\
             [read]\ndatabases = [{{ name = \"r0\", url = {url}, replicas = [{url}] }}]\n[nats]\nurl = {nats}\n"
        );
        let settings = load(&toml, &[]).unwrap();
        assert_eq!(&*settings.installation.token_key, KEY);
        assert_eq!(&*settings.write.databases[0].url, "postgres://u:hunter2@h/d");
        assert_eq!(&*settings.nats.url, "nats://n:4222");
        assert!(!format!("{settings:?}").contains("hunter2"));

        // What is wrong with it is said without what it holds.
        let wrong = format!("[installation]\ntoken_key = {url}\n");
        assert_eq!(refusal(&wrong, &[]), "souk.toml: installation.token_key: want 64 hexadecimal digits (value not shown)");
        let absent = "[installation]\ntoken_key = { file = \"/nonexistent/key\" }\n";
        let line = refusal(absent, &[]);
        assert_eq!(line, "souk.toml: installation.token_key: cannot read /nonexistent/key: No such file or directory (os error 2)");
        let line = refusal(&format!("{}[nats]\nurl = {{ path = \"/x\" }}\n", minimal()), &[]);
        assert_eq!(line, "souk.toml: nats.url: want a string or { file = \"/path\" } (value not shown)");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn only_read_databases_have_replicas() {
        let databases = |side: &str, replica: &str| {
            format!("{}[{side}]\ndatabases = [{{name=\"d\", url=\"postgres://h/d\", replicas=[\"{replica}\"]}}]\n", minimal())
        };
        assert_eq!(load(&databases("read", "postgres://s/d"), &[]).unwrap().read.databases[0].replicas.len(), 1);
        let line = refusal(&databases("read", "c0ffee"), &[]);
        assert_eq!(line, "souk.toml: read.databases[0].replicas[0]: want postgres://… (value not shown)");
        let line = refusal(&databases("write", "postgres://s/d"), &[]);
        assert_eq!(line, "souk.toml: write.databases[0].replicas: a write database is read on its primary alone");
    }

    #[test]
    fn peers_are_named_by_one_url_or_several() {
        let peers = |urls: &str| format!("{}[peers]\ncommand = \"{urls}\"\n", minimal());
        assert!(load(&peers("http://127.0.0.1:1,http://127.0.0.1:2"), &[]).is_ok());
        assert_eq!(refusal(&peers("http://a:1,b"), &[]), "souk.toml: peers.command: \"b\" is not a url like http://host:port");
    }

    #[test]
    fn what_is_missing_is_named() {
        for toml in ["", "[installation]\n"] {
            assert_eq!(refusal(toml, &[]), "souk.toml: installation.token_key (or SOUK_installation__token_key): is missing");
        }
        let line = Settings::load(Some(Path::new("/nonexistent/souk.toml"))).unwrap_err().to_string();
        assert_eq!(line, "/nonexistent/souk.toml: No such file or directory (os error 2)");
    }
}
