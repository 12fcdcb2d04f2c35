//! The steps of a configuration as a graph: whether it holds together, and the plan that it makes.
//!
//! `steps` is a step graph when it is a list of objects that all have an `id`, text or number. Anything else is
//! some other shape of another program, and is taken as it is. Ids are told apart by their text, as they become
//! the keys of steps: 1 and "1" are the same.

use std::collections::HashMap;

use bson::{Bson, Document};

use super::limits::PLANNED_STEPS;

/// Violations that are told at most.
const TOLD: usize = 50;

/// One thing that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Path below `configuration`, for instance `steps[3].id`.
    pub field: String,
    pub description: String,
}

/// One step as the configuration has it.
#[derive(Debug, Clone, PartialEq)]
struct Node<'a> {
    id: String,
    step: &'a Document,
    depends_on: Vec<String>,
}

/// An id as text. `None`: it is neither text nor a number.
fn id_text(id: &Bson) -> Option<String> {
    match id {
        Bson::String(text) | Bson::Symbol(text) => Some(text.clone()),
        Bson::Int32(number) => Some(number.to_string()),
        Bson::Int64(number) => Some(number.to_string()),
        // Other programs store whole numbers as doubles; printed, they have no fraction.
        Bson::Double(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `None`: `steps` is no step graph.
fn nodes(configuration: &Document) -> Option<Vec<Node<'_>>> {
    let steps = configuration.get_array("steps").ok()?;
    steps
        .iter()
        .map(|step| {
            let step = step.as_document()?;
            let depends_on = match step.get("depends_on") {
                Some(Bson::Array(ids)) => ids.iter().filter_map(id_text).collect(),
                Some(single) => id_text(single).into_iter().collect(),
                None => Vec::new(),
            };
            Some(Node { id: id_text(step.get("id")?)?, step, depends_on })
        })
        .collect()
}

/// What is wrong with the step graph of a configuration, if it has one.
pub fn flaws(configuration: &Document) -> Vec<Flaw> {
    let Some(nodes) = nodes(configuration) else { return Vec::new() };
    let mut flaws = Vec::new();
    let mut flaw = |index: usize, field: &str, description: String| {
        if flaws.len() < TOLD {
            flaws.push(Flaw { field: format!("steps[{index}].{field}"), description });
        }
    };
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        if let Some(first) = places.insert(&node.id, index) {
            flaw(
                index,
                "id",
                format!("is {:?}, the same as that of steps[{first}]", short(&node.id)),
            );
            places.insert(&node.id, first);
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        for id in node.depends_on.iter().filter(|id| !places.contains_key(id.as_str())) {
            flaw(
                index,
                "depends_on",
                format!("has {:?}, which is not the id of any step", short(id)),
            );
        }
    }
    if let Some(index) = in_a_circle(&nodes, &places) {
        let id = short(&nodes[index].id);
        flaw(index, "depends_on", format!("forms a cycle through step {id:?}"));
    }
    flaws
}

fn short(id: &str) -> String {
    id.chars().take(64).collect()
}

/// A step that depends on itself, if there is one. Takes away the steps that wait for nothing until there are
/// none: what is left waits for each other.
fn in_a_circle(nodes: &[Node<'_>], places: &HashMap<&str, usize>) -> Option<usize> {
    let edges = |index: usize| {
        nodes[index].depends_on.iter().filter_map(|id| places.get(id.as_str()).copied())
    };
    let mut waits: Vec<usize> = (0..nodes.len()).map(|index| edges(index).count()).collect();
    let mut waited_for: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for index in 0..nodes.len() {
        for dependency in edges(index) {
            waited_for[dependency].push(index);
        }
    }
    let mut free: Vec<usize> = (0..nodes.len()).filter(|index| waits[*index] == 0).collect();
    while let Some(index) = free.pop() {
        for waiting in std::mem::take(&mut waited_for[index]) {
            waits[waiting] -= 1;
            if waits[waiting] == 0 {
                free.push(waiting);
            }
        }
    }
    // What is left may only hang on a circle: walk along dependencies that are left, until one comes again.
    let mut index = waits.iter().position(|waits| *waits > 0)?;
    let mut seen = vec![false; nodes.len()];
    while !seen[index] {
        seen[index] = true;
        index = edges(index).find(|dependency| waits[*dependency] > 0)?;
    }
    Some(index)
}

/// One step to plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphStep {
    /// From 1, in the order of the configuration.
    pub step_id: i32,
    /// The id as text.
    pub step_key: String,
    pub step_name: String,
    pub step_version: Option<String>,
    pub depends_on: Vec<i32>,
}

/// The plan that a configuration makes. `Err`: why it makes none, as the end of a sentence about it. Stored ones
/// may come from another program, so nothing is taken for granted.
pub fn steps(configuration: &Document, name_characters: usize) -> Result<Vec<GraphStep>, String> {
    let nodes = nodes(configuration)
        .filter(|nodes| !nodes.is_empty())
        .ok_or("it has no steps (a list of objects with ids)")?;
    if nodes.len() > PLANNED_STEPS {
        return Err(format!(
            "it has {} steps, more than the limit of {PLANNED_STEPS} for a plan",
            nodes.len()
        ));
    }
    if let Some(Flaw { field, description }) = flaws(configuration).into_iter().next() {
        return Err(format!("{field} {description}"));
    }
    let numbers: HashMap<&str, i32> = nodes.iter().map(|node| node.id.as_str()).zip(1..).collect();
    let fits = |text: &str| !text.is_empty() && text.chars().count() <= name_characters;
    nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let text = |field: &str| {
                let found = node.step.get(field).and_then(id_text);
                found.filter(|text| !text.is_empty())
            };
            let step_name = text("name").unwrap_or_else(|| node.id.clone());
            let step_version = text("version");
            for (field, text) in
                [("id", Some(&node.id)), ("name", Some(&step_name)), ("version", step_version.as_ref())]
            {
                if text.is_some_and(|text| !fits(text)) {
                    return Err(format!(
                        "steps[{index}].{field} is empty or longer than {name_characters} characters"
                    ));
                }
            }
            let mut depends_on: Vec<i32> =
                node.depends_on.iter().filter_map(|id| numbers.get(id.as_str()).copied()).collect();
            depends_on.sort_unstable();
            depends_on.dedup();
            Ok(GraphStep {
                step_id: numbers[node.id.as_str()],
                step_key: node.id.clone(),
                step_name,
                step_version,
                depends_on,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn told(configuration: &Document) -> Vec<String> {
        flaws(configuration).into_iter().map(|flaw| flaw.field).collect()
    }

    #[test]
    fn every_flaw_of_a_graph_is_told() {
        let graph = doc! { "steps": [
            { "id": 1, "depends_on": ["nobody", 2] },
            { "id": "1" },
            { "id": 2, "depends_on": 3 },
            { "id": 3.0, "depends_on": [2] },
            { "id": 4, "depends_on": [3] },
        ] };
        let found = flaws(&graph);
        let fields: Vec<&str> = found.iter().map(|flaw| flaw.field.as_str()).collect();
        assert_eq!(fields[..2], ["steps[1].id", "steps[0].depends_on"]);
        // One on the circle of 2 and 3, not one that only hangs on it.
        assert!(["steps[2].depends_on", "steps[3].depends_on"].contains(&fields[2]), "{found:?}");
        assert_eq!(found.len(), 3);
        assert!(steps(&graph, 256).is_err());
        assert_eq!(told(&doc! { "steps": [{ "id": "a", "depends_on": ["a"] }] }).len(), 1);
    }

    #[test]
    fn other_shapes_are_no_graphs_and_have_no_flaws() {
        for other in [
            doc! {},
            doc! { "steps": [] },
            doc! { "steps": null },
            doc! { "steps": "three" },
            doc! { "steps": ["a", "a"] },
            doc! { "steps": [{ "name": "a" }, { "id": 1 }] },
            doc! { "steps": [{ "id": { "a": 1 } }] },
            doc! { "tasks": [{ "id": 1 }, { "id": 1 }] },
        ] {
            assert_eq!(flaws(&other), [], "{other}");
            assert!(steps(&other, 256).is_err(), "{other}");
        }
    }

    #[test]
    fn a_long_chain_is_a_plan() {
        let chain: Vec<Bson> = (0..PLANNED_STEPS as i32)
            .map(|n| {
                let before: Vec<String> =
                    (n > 0).then(|| format!("s{}", n - 1)).into_iter().collect();
                doc! { "id": format!("s{n}"), "depends_on": before }.into()
            })
            .collect();
        let plan = steps(&doc! { "steps": &chain }, 256).unwrap();
        assert_eq!(plan.len(), PLANNED_STEPS);
        assert_eq!((plan[1].step_id, plan[1].depends_on.as_slice()), (2, [1].as_slice()));
        let more: Vec<Bson> = (0..=PLANNED_STEPS as i32).map(|n| doc! { "id": n }.into()).collect();
        assert!(steps(&doc! { "steps": more }, 256).unwrap_err().contains("10001"));
    }

    #[test]
    fn a_plan_takes_names_and_versions_where_there_are_some() {
        let plan = steps(
            &doc! { "steps": [
                { "id": "b", "name": "second", "depends_on": ["a", "a"], "version": "1.0" },
                { "id": "a", "name": "", "version": null, "depends_on": null },
            ] },
            256,
        )
        .unwrap();
        let step =
            |step_id, key: &str, name: &str, version: Option<&str>, depends_on: &[i32]| GraphStep {
                step_id,
                step_key: key.to_owned(),
                step_name: name.to_owned(),
                step_version: version.map(str::to_owned),
                depends_on: depends_on.to_vec(),
            };
        assert_eq!(
            plan,
            [step(1, "b", "second", Some("1.0"), &[2]), step(2, "a", "a", None, &[]),]
        );
        let long = "x".repeat(257);
        assert!(steps(&doc! { "steps": [{ "id": "" }] }, 256).is_err());
        assert!(steps(&doc! { "steps": [{ "id": &long }] }, 256).is_err());
    }
}
