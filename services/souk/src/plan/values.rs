//! A plan as a values file of the Helm chart.

use serde_json::{Value, json};

use super::{
    arithmetic::{MIB, Plan},
    need::Part,
};

/// Memory of a query process beside its cache, in MiB.
const QUERY_MEMORY: u64 = 512;

/// What the chart is to be given. Urls are left to secrets.
pub fn values(plan: &Plan) -> Value {
    let count = |part| plan.count(part);
    let services = [("command", Part::Command), ("query", Part::Query), ("projector", Part::Projector), ("saga", Part::Saga)];
    let combined = services.iter().all(|(_, part)| count(*part) == 1);
    let cache = count(Part::Cache);
    let mut values = json!({
        "layout": if combined { "combined" } else { "apart" },
        "installation": {"partitions": plan.frame.partitions, "tokenKeySecret": {"name": "souk-token-key"}},
        "write": {"databases": databases("write", count(Part::WriteDatabase), 0)},
        "read": {"databases": databases("read", count(Part::ReadDatabase), count(Part::ReadReplica) / count(Part::ReadDatabase))},
        "nats": {
            "urlSecret": {"name": "souk-nats"},
            "streamReplicas": plan.jetstream.copies,
            "streamMaxBytes": count(Part::JetStream) * MIB as u64,
        },
        "settings": {"query": {"cache_bytes": cache * MIB as u64}},
        "monitoring": {"rules": {"writeCapacityPerDatabase": plan.capacities.write_database.per_second as u64}},
    });
    if combined {
        // As in the chart's smallest size: nobody would be told of what it finds.
        values["audit"] = json!({"enabled": false});
    } else {
        for (service, part) in services {
            let (min, most) = (count(part), plan.frame.partitions.max(count(part)));
            values[service] = json!({"autoscaling": {"kind": "hpa", "min": min, "max": (2 * min).min(most)}});
        }
    }
    values["query"]["resources"] = json!({"limits": {"memory": format!("{}Mi", cache + QUERY_MEMORY)}});
    values
}

fn databases(side: &str, count: u64, replicas: u64) -> Value {
    let secret = |key: &str| json!({"name": "souk-databases", "key": key});
    let database = |number: u64| {
        let name = format!("{side}-{number}");
        let mut database = json!({"name": name, "urlSecret": secret(&name)});
        if replicas > 0 {
            let replica = |number| json!({"urlSecret": secret(&format!("{name}-replica-{number}"))});
            database["replicas"] = (1..=replicas).map(replica).collect();
        }
        database
    };
    (1..=count).map(database).collect()
}

/// The order of the chart's own files.
const ORDER: [&str; 12] =
    ["layout", "installation", "write", "read", "nats", "settings", "command", "query", "projector", "saga", "audit", "monitoring"];

/// The values as YAML: a block for each section, a line for each database.
pub fn yaml(values: &Value) -> String {
    let mut text = String::new();
    for section in ORDER {
        match &values[section] {
            Value::Null => {}
            Value::Object(members) => {
                text += &format!("{section}:\n");
                for (key, value) in members {
                    text += &match value {
                        Value::Array(items) => {
                            format!("  {key}:\n{}", items.iter().map(|item| format!("    - {}\n", flow(item))).collect::<String>())
                        }
                        _ => format!("  {key}: {}\n", flow(value)),
                    };
                }
            }
            value => text += &format!("{section}: {}\n", flow(value)),
        }
    }
    text
}

/// A value in one line. What could be read as anything but a text is in quotes.
fn flow(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Object(members) => format!("{{{}}}", list(members.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect())),
        Value::Array(items) => format!("[{}]", list(items.iter().map(flow).collect())),
        Value::String(text)
            if text.starts_with(|first: char| first.is_ascii_lowercase()) && !["true", "false", "null"].contains(&text.as_str()) =>
        {
            text.clone()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plan_of, *};

    #[test]
    fn the_smallest_size_is_one_pod() {
        let values = values(&plan_of(1.0));
        assert_eq!((&values["layout"], &values["command"]), (&json!("combined"), &Value::Null));
        assert_eq!(values["audit"], json!({"enabled": false}));
        assert_eq!(values["read"]["databases"], json!([{"name": "read-1", "urlSecret": {"name": "souk-databases", "key": "read-1"}}]));
    }

    #[test]
    fn a_million_users_get_databases_replicas_and_room_to_scale() {
        let values = values(&plan_of(10_000.0));
        let names = |side: &str| values[side]["databases"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
        assert_eq!((names("write"), names("read")), (vec![json!("write-1"), json!("write-2")], vec![json!("read-1")]));
        assert_eq!(values["read"]["databases"][0]["replicas"].as_array().unwrap().len(), 2);
        assert_eq!(values["query"]["autoscaling"], json!({"kind": "hpa", "min": 2, "max": 4}));
        assert_eq!(values["monitoring"]["rules"]["writeCapacityPerDatabase"], json!(5_000));
        assert_eq!((&values["nats"]["streamReplicas"], &values["nats"]["streamMaxBytes"]), (&json!(3), &json!(2_147_483_648u64)));
    }

    #[test]
    fn yaml_has_a_line_for_each_database_and_quotes_what_is_no_plain_text() {
        let values = json!({"layout": "apart", "nats": {"streamReplicas": 3, "urlSecret": {"name": "n"}}, "write": {"databases": [{"name": "true"}]}});
        let wanted = "layout: apart\nwrite:\n  databases:\n    - {name: \"true\"}\nnats:\n  streamReplicas: 3\n  urlSecret: {name: n}\n";
        assert_eq!(yaml(&values), wanted);
    }
}
