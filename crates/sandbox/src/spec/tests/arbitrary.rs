//! Whatever a configuration says, the split ends in a result.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::golden::{golden, split_json};

/// Any JSON of some depth, with the words that configurations use among its
/// strings.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "",
        "/",
        "..",
        "/dev/shm",
        "bind",
        "rbind",
        "tmpfs",
        "proc",
        "pid",
        "network",
        "a",
        "c",
        "rwm",
        "CAP_KILL",
        "RLIMIT_CPU",
        "SCMP_ACT_ERRNO",
        "SCMP_CMP_EQ",
        "read",
        "2MB",
        "x\0y",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-2_i64..8).prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// Every place in `value`, as JSON pointers.
fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                pointers(inner, format!("{at}/{}", key.replace('/', "~1")), found);
            }
        }
        Value::Array(list) => {
            for (n, inner) in list.iter().enumerate() {
                pointers(inner, format!("{at}/{n}"), found);
            }
        }
        _ => {}
    }
    found.push(at);
}

fn real_configuration() -> Value {
    let json = std::fs::read(golden("podman-flags.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn ends_in_one_line(value: &Value) -> Result<(), TestCaseError> {
    if let Err(error) = split_json(value.to_string().as_bytes()) {
        let line = error.to_string();
        prop_assert!(!line.contains(['\n', '\0']), "{line:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A real configuration with one place replaced reaches every part of the
    /// split, which configurations made of nothing hardly do.
    #[test]
    fn a_real_configuration_with_one_part_replaced(
        place in any::<prop::sample::Index>(),
        replacement in any_json(),
    ) {
        let mut configuration = real_configuration();
        let mut places = Vec::new();
        pointers(&configuration, String::new(), &mut places);
        let place: &String = place.get(&places);
        *configuration.pointer_mut(place).unwrap() = replacement;
        ends_in_one_line(&configuration)?;
    }

    #[test]
    fn resources_of_any_kind(resources in any_json(), devices in any_json(), sysctl in any_json()) {
        let mut configuration = real_configuration();
        configuration["linux"]["resources"] = json!({
            "memory": resources, "devices": devices, "unified": resources,
        });
        configuration["linux"]["sysctl"] = sysctl;
        ends_in_one_line(&configuration)?;
    }

    #[test]
    fn any_bytes(bytes: Vec<u8>) {
        prop_assert!(split_json(&bytes).is_err());
    }
}
