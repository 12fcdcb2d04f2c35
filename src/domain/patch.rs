//! The difference of two values as a JSON Patch (RFC 6902): operations that, applied in their order, make the
//! one into the other. Places are JSON Pointers (RFC 6901).

use bson::{Bson, Document};

use super::value::same;

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The pointer.
    pub path: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Add(Bson),
    Remove,
    Replace(Bson),
}

/// What has to be done to `from` to get `to`. Nothing when they are the same.
pub fn diff(from: &Document, to: &Document) -> Vec<Change> {
    let mut changes = Vec::new();
    objects("", from, to, &mut changes);
    changes
}

fn objects(path: &str, from: &Document, to: &Document, changes: &mut Vec<Change>) {
    let below = |key: &str| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
    for (key, old) in from {
        match to.get(key) {
            None => changes.push(Change { path: below(key), what: What::Remove }),
            Some(new) => values(&below(key), old, new, changes),
        }
    }
    for (key, new) in to.iter().filter(|(key, _)| !from.contains_key(key)) {
        changes.push(Change { path: below(key), what: What::Add(new.clone()) });
    }
}

fn values(path: &str, from: &Bson, to: &Bson, changes: &mut Vec<Change>) {
    match (from, to) {
        (Bson::Document(from), Bson::Document(to)) => objects(path, from, to, changes),
        (Bson::Array(from), Bson::Array(to)) => lists(path, from, to, changes),
        _ if same(from, to) => {}
        _ => changes.push(Change { path: path.to_owned(), what: What::Replace(to.clone()) }),
    }
}

/// What both begin and end with stays; what is between is changed one by one, then removed or added. So one
/// element more or less somewhere is one operation.
fn lists(path: &str, from: &[Bson], to: &[Bson], changes: &mut Vec<Change>) {
    let begin = from.iter().zip(to).take_while(|(old, new)| same(old, new)).count();
    let rest = from[begin..].iter().rev().zip(to[begin..].iter().rev());
    let end = rest.take_while(|(old, new)| same(old, new)).count();
    let (old, new) = (&from[begin..from.len() - end], &to[begin..to.len() - end]);
    for (index, (old, new)) in old.iter().zip(new).enumerate() {
        values(&format!("{path}/{}", begin + index), old, new, changes);
    }
    // From behind, as each removal moves what follows.
    for index in (new.len()..old.len()).rev() {
        changes.push(Change { path: format!("{path}/{}", begin + index), what: What::Remove });
    }
    for (index, added) in new.iter().enumerate().skip(old.len()) {
        let path = format!("{path}/{}", begin + index);
        changes.push(Change { path, what: What::Add(added.clone()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    /// Applies one operation, as RFC 6902 says it.
    fn apply(target: &mut Bson, path: &str, what: &What) {
        let (parent, last) = path.rsplit_once('/').expect("never the whole");
        let keys = parent.split('/').skip(1).map(unescape);
        let place = keys.fold(target, |target, key| match target {
            Bson::Document(object) => object.get_mut(&key).expect("the parent is there"),
            Bson::Array(list) => &mut list[key.parse::<usize>().expect("an index")],
            other => panic!("{other} has nothing in it"),
        });
        let last = unescape(last);
        match (place, what) {
            (Bson::Document(object), What::Add(value)) => {
                object.insert(last, value.clone());
            }
            (Bson::Document(object), What::Replace(value)) => {
                assert!(object.insert(last, value.clone()).is_some(), "it must be there");
            }
            (Bson::Document(object), What::Remove) => {
                assert!(object.remove(&last).is_some(), "it must be there");
            }
            (Bson::Array(list), what) => {
                let index: usize = last.parse().expect("an index");
                match what {
                    What::Add(value) => list.insert(index, value.clone()),
                    What::Replace(value) => list[index] = value.clone(),
                    What::Remove => {
                        list.remove(index);
                    }
                }
            }
            (other, _) => panic!("{other} has nothing in it"),
        }
    }

    fn unescape(key: &str) -> String {
        key.replace("~1", "/").replace("~0", "~")
    }

    fn check(from: &Document, to: &Document) -> Vec<Change> {
        let changes = diff(from, to);
        let mut got = Bson::Document(from.clone());
        for change in &changes {
            apply(&mut got, &change.path, &change.what);
        }
        assert!(same(&got, &Bson::Document(to.clone())), "{from}\n{to}\n{got}\n{changes:?}");
        changes
    }

    #[test]
    fn one_step_more_or_less_is_one_change() {
        let step = |id: i32| doc! { "id": id, "name": format!("step {id}") };
        let three = doc! { "steps": [step(1), step(2), step(3)] };
        let two = doc! { "steps": [step(1), step(3)] };
        let removed = check(&three, &two);
        assert_eq!(removed, [Change { path: "/steps/1".to_owned(), what: What::Remove }]);
        let added = check(&two, &three);
        let what = What::Add(step(2).into());
        assert_eq!(added, [Change { path: "/steps/1".to_owned(), what }]);
        assert_eq!(check(&two, &two), []);
    }

    #[test]
    fn keys_are_escaped_and_numbers_compare_by_value() {
        let from = doc! { "a/b": { "~c": 1, "": 2 }, "n": 1, "gone": null };
        let to = doc! { "a/b": { "~c": 2, "": 2 }, "n": 1.0, "~/": [] };
        let paths: Vec<String> = check(&from, &to).into_iter().map(|change| change.path).collect();
        assert_eq!(paths, ["/a~1b/~0c", "/gone", "/~0~1"]);
    }

    #[test]
    fn another_kind_of_value_is_a_replacement() {
        let kinds: [Bson; 6] =
            [Bson::Null, 1.into(), "1".into(), doc! {}.into(), Bson::Array(vec![]), true.into()];
        for from in &kinds {
            for to in &kinds {
                let changes = check(&doc! { "k": from }, &doc! { "k": to });
                assert_eq!(changes.len(), usize::from(from != to));
            }
        }
    }

    #[test]
    fn applied_in_order_the_changes_make_one_value_into_the_other() {
        for seed in 0..3000 {
            let mut made = Made(seed);
            let from = made.object(3);
            let to = if made.below(3) == 0 { made.object(3) } else { made.changed(&from) };
            check(&from, &to);
        }
    }

    /// Values made from a number, the same ones every time.
    struct Made(u64);

    impl Made {
        fn below(&mut self, bound: u64) -> u64 {
            // SplitMix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % bound
        }

        fn object(&mut self, depth: u64) -> Document {
            const KEYS: [&str; 7] = ["a", "b", "a/b", "~", "", "0", "~1"];
            let count = self.below(5);
            (0..count)
                .map(|_| {
                    let key = KEYS[self.below(7) as usize].to_owned();
                    (key, self.value(depth))
                })
                .collect()
        }

        fn value(&mut self, depth: u64) -> Bson {
            match self.below(if depth == 0 { 5 } else { 9 }) {
                0 => Bson::Null,
                1 => Bson::Boolean(self.below(2) == 0),
                2 => Bson::Int32(self.below(3) as i32),
                3 => Bson::Double(self.below(3) as f64 / 2.0),
                4 => Bson::String("x".repeat(self.below(3) as usize)),
                5 | 6 => Bson::Document(self.object(depth - 1)),
                _ => {
                    let count = self.below(6);
                    Bson::Array((0..count).map(|_| self.value(depth - 1)).collect())
                }
            }
        }

        fn changed(&mut self, from: &Document) -> Document {
            let mut to = Document::new();
            for (key, value) in from {
                if self.below(6) > 0 {
                    to.insert(key.clone(), self.changed_value(value));
                }
            }
            if self.below(3) == 0 {
                to.extend(self.object(1));
            }
            to
        }

        fn changed_value(&mut self, from: &Bson) -> Bson {
            match (self.below(4), from) {
                (0, _) => self.value(2),
                (1, _) => from.clone(),
                (_, Bson::Document(object)) => Bson::Document(self.changed(object)),
                (_, Bson::Array(list)) => {
                    let mut list = list.clone();
                    for _ in 0..self.below(3) {
                        let index = self.below(list.len() as u64 + 1) as usize;
                        match self.below(3) {
                            0 => list.insert(index, self.value(1)),
                            1 if index < list.len() => {
                                list.remove(index);
                            }
                            _ if index < list.len() => {
                                list[index] = self.changed_value(&list[index].clone());
                            }
                            _ => {}
                        }
                    }
                    Bson::Array(list)
                }
                _ => from.clone(),
            }
        }
    }
}
