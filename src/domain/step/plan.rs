//! Whether steps can be planned as they depend on each other.

use std::collections::HashMap;

use crate::domain::refusal::Refusal;

/// Checks that the dependencies of planned steps lead to known steps and never in a circle. `known` are the
/// steps already stored, with their own dependencies.
pub fn check_plan(
    planned: &[(i32, Vec<i32>)],
    known: &HashMap<i32, Vec<i32>>,
) -> Result<(), Refusal> {
    let new: HashMap<i32, &[i32]> =
        planned.iter().map(|(step_id, depends_on)| (*step_id, depends_on.as_slice())).collect();
    let edges = |id: i32| -> Option<&[i32]> {
        new.get(&id).copied().or_else(|| known.get(&id).map(Vec::as_slice))
    };
    for (step_id, depends_on) in planned {
        for dependency in depends_on {
            if edges(*dependency).is_none() {
                return Err(Refusal::UnknownDependency {
                    step_id: *step_id,
                    depends_on: dependency.to_string(),
                });
            }
        }
    }
    // Depth first, without recursion: a plan may be one chain of a thousand.
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks = HashMap::new();
    for (root, _) in planned {
        let mut stack = vec![(*root, 0usize)];
        while let Some((id, next)) = stack.pop() {
            if next == 0 {
                match marks.get(&id) {
                    Some(Mark::Done) => continue,
                    Some(Mark::Open) => return Err(Refusal::DependencyCycle { step_id: id }),
                    None => {
                        marks.insert(id, Mark::Open);
                    }
                }
            }
            match edges(id).and_then(|edges| edges.get(next)) {
                Some(dependency) => {
                    stack.push((id, next + 1));
                    if marks.get(dependency) == Some(&Mark::Open) {
                        return Err(Refusal::DependencyCycle { step_id: *dependency });
                    }
                    stack.push((*dependency, 0));
                }
                None => {
                    marks.insert(id, Mark::Done);
                }
            }
        }
    }
    Ok(())
}
