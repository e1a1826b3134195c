//! The part of Go's templates that ghz data uses: `{{.RequestNumber}}`, `{{randomInt 1 100}}`, `{{mod .RequestNumber 7}}`.

use std::{fmt::Write, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use prost_reflect::{DynamicMessage, MethodDescriptor, Value as Field};
use rand::{Rng, distr::Alphanumeric, rngs::SmallRng};
use uuid::Uuid;

use super::keys::Keys;

/// Text with actions to be evaluated anew for each call.
#[derive(Debug)]
pub struct Template(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    Action(Expression),
}

#[derive(Debug)]
enum Expression {
    Value(Value),
    RequestNumber,
    Time(Unit),
    Rfc3339,
    /// The same in all places of one call.
    CallId,
    Key(usize),
    /// A field of the reply to the call before, by its path.
    Reply(Vec<String>),
    Call(Function, Vec<Expression>),
}

#[derive(Clone, Debug)]
enum Value {
    Number(i64),
    Text(String),
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Seconds,
    Millis,
    Nanos,
}

#[derive(Clone, Copy, Debug)]
enum Function {
    NewUuid,
    RandomString,
    RandomInt,
    Add,
    Sub,
    Mul,
    Div,
    Mod,
}

/// What actions may speak of.
pub struct Scope<'a> {
    pub number: u64,
    pub call_id: Uuid,
    pub random: &'a mut SmallRng,
    pub keys: &'a Keys,
    /// The reply of the call before, in a chain.
    pub reply: Option<&'a DynamicMessage>,
}

impl Template {
    /// # Errors
    /// When it is no template, or one that asks for more than this program knows; the line names it.
    pub fn parse(text: &str, method: &MethodDescriptor, keys: &Keys) -> Result<Self> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").with_context(|| format!("{{{{{after} has no end"))?;
            let parsed = Parser { tokens: tokens(action)?, method, keys }.all();
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Action(parsed.with_context(|| format!("in {{{{{action}}}}}"))?));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// Whether every call gets the same text.
    pub fn is_constant(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    /// Paths of the fields of the reply before that are asked for.
    pub fn asks_of_reply(&self) -> Vec<&[String]> {
        let mut paths = Vec::new();
        for piece in &self.0 {
            if let Piece::Action(action) = piece {
                action.asks_of_reply(&mut paths);
            }
        }
        paths
    }

    pub fn render(&self, scope: &mut Scope<'_>) -> Result<String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Action(action) => match action.evaluate(scope)? {
                    Value::Number(number) => write!(text, "{number}")?,
                    Value::Text(value) => text.push_str(&value),
                },
            }
        }
        Ok(text)
    }
}

impl Expression {
    fn asks_of_reply<'a>(&'a self, paths: &mut Vec<&'a [String]>) {
        match self {
            Self::Reply(path) => paths.push(path),
            Self::Call(_, arguments) => arguments.iter().for_each(|argument| argument.asks_of_reply(paths)),
            _ => {}
        }
    }

    fn evaluate(&self, scope: &mut Scope<'_>) -> Result<Value> {
        Ok(match self {
            Self::Value(value) => value.clone(),
            Self::RequestNumber => Value::Number(scope.number as i64),
            Self::Time(unit) => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Value::Number(match unit {
                    Unit::Seconds => since.as_secs() as i64,
                    Unit::Millis => since.as_millis() as i64,
                    Unit::Nanos => since.as_nanos() as i64,
                })
            }
            Self::Rfc3339 => Value::Text(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            Self::CallId => Value::Text(scope.call_id.to_string()),
            Self::Key(set) => Value::Text(scope.keys.draw(*set, scope.random)),
            Self::Reply(path) => Value::Text(of_reply(scope.reply.context("there is no reply before")?, path)?),
            Self::Call(function, arguments) => {
                let values = arguments.iter().map(|argument| argument.evaluate(scope)).collect::<Result<Vec<_>>>()?;
                function.call(&values, scope)?
            }
        })
    }
}

/// The field as it stands in JSON, without its quotes.
fn of_reply(reply: &DynamicMessage, path: &[String]) -> Result<String> {
    let (name, rest) = path.split_first().context(".Reply of what?")?;
    let value = reply.get_field_by_name(name).with_context(|| format!("the reply has no field {name}"))?;
    match &*value {
        Field::Message(inner) if !rest.is_empty() => of_reply(inner, rest),
        _ if !rest.is_empty() => bail!("{name} has no fields"),
        Field::String(text) => {
            let quoted = serde_json::to_string(text)?;
            Ok(quoted[1..quoted.len() - 1].to_owned())
        }
        Field::I32(number) => Ok(number.to_string()),
        Field::I64(number) => Ok(number.to_string()),
        Field::U32(number) => Ok(number.to_string()),
        Field::U64(number) => Ok(number.to_string()),
        Field::Bool(value) => Ok(value.to_string()),
        other => bail!("{name} is neither text nor number: {other:?}"),
    }
}

impl Function {
    fn named(name: &str) -> Result<(Self, Option<usize>)> {
        Ok(match name {
            "newUUID" | "uuidv4" => (Self::NewUuid, Some(0)),
            "randomString" => (Self::RandomString, Some(1)),
            "randomInt" => (Self::RandomInt, Some(2)),
            "add" => (Self::Add, None),
            "mul" => (Self::Mul, None),
            "sub" => (Self::Sub, Some(2)),
            "div" => (Self::Div, Some(2)),
            "mod" => (Self::Mod, Some(2)),
            _ => bail!(
                "souk load does not know the template function {name:?}; it knows newUUID, randomString, randomInt, add, sub, mul, div, mod"
            ),
        })
    }

    fn call(self, values: &[Value], scope: &mut Scope<'_>) -> Result<Value> {
        let numbers = values.iter().map(Value::number).collect::<Result<Vec<_>>>()?;
        let pair = || (numbers[0], numbers[1]);
        Ok(Value::Number(match self {
            Self::NewUuid => return Ok(Value::Text(new_uuid().to_string())),
            Self::RandomString => return Ok(Value::Text(random_string(numbers[0], scope.random))),
            Self::RandomInt => {
                let (min, max) = (numbers[0].max(0), if numbers[1] <= 0 { 1 } else { numbers[1] });
                ensure!(min < max, "randomInt {min} {max} has nothing to choose from");
                scope.random.random_range(min..max)
            }
            Self::Add => numbers.iter().fold(0, |sum, number| sum.wrapping_add(*number)),
            Self::Mul => numbers.iter().fold(1, |product, number| product.wrapping_mul(*number)),
            Self::Sub => pair().0.wrapping_sub(pair().1),
            Self::Div => pair().0.checked_div(pair().1).context("a division by zero")?,
            Self::Mod => pair().0.checked_rem(pair().1).context("a remainder by zero")?,
        }))
    }
}

/// Not from the run's seed: ids repeated in another run would be taken for the same requests.
pub fn new_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

/// As ghz does it: from 2 to 16 characters if no length is asked for.
fn random_string(length: i64, random: &mut SmallRng) -> String {
    let length = if length <= 0 { random.random_range(2..=16) } else { length as usize };
    random.sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

impl Value {
    fn number(&self) -> Result<i64> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => text.parse().with_context(|| format!("{text:?} is no number")),
        }
    }
}

/// Words, numbers, strings, and each parenthesis or bar.
fn tokens(action: &str) -> Result<Vec<String>> {
    let (mut tokens, mut rest) = (Vec::new(), action.trim());
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' | '|' => 1,
            '"' | '`' => 2 + rest[1..].find(first).context("a string has no end")?,
            _ => rest.find(|next: char| next.is_whitespace() || "()|".contains(next)).unwrap_or(rest.len()),
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens.reverse();
    Ok(tokens)
}

struct Parser<'a> {
    /// The next one last.
    tokens: Vec<String>,
    method: &'a MethodDescriptor,
    keys: &'a Keys,
}

impl Parser<'_> {
    fn all(mut self) -> Result<Expression> {
        let expression = self.pipeline()?;
        match self.tokens.last() {
            Some(token) => bail!("unexpected {token:?}"),
            None => Ok(expression),
        }
    }

    /// Commands between bars: the value of each is the last argument of the next.
    fn pipeline(&mut self) -> Result<Expression> {
        let mut value = self.command(None)?;
        while self.tokens.pop_if(|token| *token == "|").is_some() {
            value = self.command(Some(value))?;
        }
        Ok(value)
    }

    fn command(&mut self, piped: Option<Expression>) -> Result<Expression> {
        let first = self.tokens.pop().context("nothing to evaluate")?;
        if !first.starts_with(char::is_alphabetic) {
            ensure!(piped.is_none(), "{first:?} is no function");
            return self.operand(first);
        }
        let (function, wanted) = Function::named(&first)?;
        let mut arguments = Vec::new();
        while let Some(token) = self.tokens.pop_if(|token| *token != "|" && *token != ")") {
            arguments.push(self.operand(token)?);
        }
        arguments.extend(piped);
        let right = wanted.map_or(!arguments.is_empty(), |wanted| arguments.len() == wanted);
        ensure!(right, "{first} does not take {} arguments", arguments.len());
        Ok(Expression::Call(function, arguments))
    }

    fn operand(&mut self, token: String) -> Result<Expression> {
        let text = |text: &str| Expression::Value(Value::Text(text.to_owned()));
        Ok(match token.as_str() {
            "(" => {
                let inner = self.pipeline()?;
                ensure!(self.tokens.pop().is_some_and(|token| token == ")"), "a parenthesis is not closed");
                inner
            }
            ".RequestNumber" => Expression::RequestNumber,
            ".Timestamp" => Expression::Rfc3339,
            ".TimestampUnix" => Expression::Time(Unit::Seconds),
            ".TimestampUnixMilli" => Expression::Time(Unit::Millis),
            ".TimestampUnixNano" => Expression::Time(Unit::Nanos),
            ".UUID" => Expression::CallId,
            ".FullyQualifiedName" => text(self.method.full_name()),
            ".MethodName" => text(self.method.name()),
            ".ServiceName" => text(self.method.parent_service().name()),
            ".InputName" => text(self.method.input().name()),
            ".OutputName" => text(self.method.output().name()),
            name if name.starts_with(".Key.") => Expression::Key(self.keys.find(&name[5..])?),
            name if name.starts_with(".Reply.") => Expression::Reply(name[7..].split('.').map(str::to_owned).collect()),
            name if name.starts_with('.') => bail!("souk load does not know the template variable {name}"),
            name if name.starts_with(['"', '`']) => text(&name[1..name.len() - 1]),
            name if name.starts_with(char::is_alphabetic) => {
                let (function, wanted) = Function::named(name)?;
                ensure!(wanted == Some(0), "{name} needs arguments; put it in parentheses with them");
                Expression::Call(function, Vec::new())
            }
            number => Expression::Value(Value::Number(number.parse().with_context(|| format!("{number:?} is no number"))?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;
    use rand::SeedableRng;

    use super::*;

    fn method() -> MethodDescriptor {
        let pool = DescriptorPool::decode(souk_proto::DESCRIPTORS).expect("the contracts");
        let service = pool.get_service_by_name("souk.orders.v1.CommandService").expect("a service");
        service.methods().next().expect("a method")
    }

    fn render(text: &str, number: u64) -> Result<String> {
        let (keys, mut random) = (Keys::default(), SmallRng::seed_from_u64(7));
        let template = Template::parse(text, &method(), &keys)?;
        template.render(&mut Scope { number, call_id: Uuid::nil(), random: &mut random, keys: &keys, reply: None })
    }

    #[test]
    fn actions_are_evaluated_as_ghz_does() {
        let rendered = |text| render(text, 41).expect("a template");
        assert_eq!(rendered("plain { } text"), "plain { } text");
        assert_eq!(rendered(r#"{"n":"{{.RequestNumber}}"}"#), r#"{"n":"41"}"#);
        assert_eq!(rendered("p-{{ add 1 (mod .RequestNumber 10) }}!"), "p-2!");
        assert_eq!(rendered("{{.RequestNumber | add 1 | mul 2}}"), "84");
        assert_eq!(rendered("{{sub 1 3}} {{div 7 2}} {{`raw`}} {{\"text\"}}"), "-2 3 raw text");
        assert_eq!(rendered("{{.ServiceName}}/{{.MethodName}} {{.InputName}}"), "CommandService/PlaceOrder PlaceOrderRequest");
        assert_eq!(rendered("{{.UUID}}"), Uuid::nil().to_string());
        assert_eq!(rendered("{{newUUID}}").parse::<Uuid>().expect("an id").get_version_num(), 4);
        assert_eq!(rendered("{{randomString 8 }}").len(), 8);
        assert!((2..=16).contains(&rendered("{{randomString 0}}").len()));
        for number in 0..100 {
            let chosen: u64 = render("{{randomInt 1 4}}", number).expect("a template").parse().expect("a number");
            assert!((1..4).contains(&chosen));
        }
        assert!(rendered("{{.TimestampUnixMilli}}").parse::<u64>().expect("a number") > 1_700_000_000_000);
    }

    #[test]
    fn what_is_not_known_is_named() {
        let refused = |text| format!("{:#}", render(text, 0).expect_err(text));
        assert!(refused("{{snakecase .MethodName}}").contains("does not know the template function \"snakecase\""));
        assert!(refused("{{.WorkerID}}").contains("does not know the template variable .WorkerID"));
        assert!(refused("{{randomInt 1}}").contains("randomInt does not take 1 arguments"));
        assert!(refused("{{.RequestNumber").contains("has no end"));
        assert!(refused("{{mod 1 0}}").contains("zero"));
        assert!(refused("{{randomInt 4 4}}").contains("nothing to choose from"));
        assert!(refused("{{.Key.nobody}}").contains("nobody"));
        assert!(refused("{{(add 1 2}}").contains("not closed"));
        assert!(refused("{{add 1 2)}}").contains("unexpected"));
        assert!(refused("{{}}").contains("nothing to evaluate"));
        assert!(refused("{{if true}}x{{end}}").contains("function \"if\""));
    }
}
