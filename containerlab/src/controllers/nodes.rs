//! Marking dead nodes: the Ready condition of a Node manifest.

use serde_json::{Value, json};

/// Reason of the conditions that the lab sets.
const REASON: &str = "LabNodePoweredOff";

/// Sets the Node's Ready condition to False when the lab knows it to be dead, and takes that back when it is not; a
/// condition that somebody else set to False stays. Returns whether the document changed.
pub fn mark(node: &mut Value, dead: bool) -> bool {
    let condition = if dead {
        json!({
            "type": "Ready",
            "status": "False",
            "reason": REASON,
            "message": "the lab powered the node off",
        })
    } else {
        if marked_by_lab(node).is_none() {
            return false;
        }
        json!({
            "type": "Ready",
            "status": "True",
            "reason": "LabNodeUp",
            "message": "the lab runs this node",
        })
    };
    let Some(root) = node.as_object_mut() else { return false };
    let status = root.entry("status").or_insert_with(|| json!({}));
    let Some(status) = status.as_object_mut() else { return false };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return false };
    match conditions.iter_mut().find(|old| old.get("type").and_then(Value::as_str) == Some("Ready")) {
        Some(old) if *old == condition => false,
        Some(old) => {
            *old = condition;
            true
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// The node's name, if its Ready condition is anything but True (a Node without one counts as ready).
pub fn not_ready(node: &Value) -> Option<String> {
    let condition = ready_condition(node)?;
    let status = condition.get("status").and_then(Value::as_str);
    (status != Some("True")).then(|| name(node).map(str::to_owned)).flatten()
}

/// The node's name, if it is the lab that set its Ready condition to False.
pub(super) fn marked_by_lab(node: &Value) -> Option<&str> {
    if node.get("kind").and_then(Value::as_str) != Some("Node") {
        return None;
    }
    let reason = ready_condition(node)?.get("reason").and_then(Value::as_str);
    (reason == Some(REASON)).then(|| name(node)).flatten()
}

fn ready_condition(node: &Value) -> Option<&Value> {
    let conditions = node.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some("Ready"))
}

fn name(node: &Value) -> Option<&str> {
    node.pointer("/metadata/name").and_then(Value::as_str)
}
