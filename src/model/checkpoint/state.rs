//! The state dict in a checkpoint: where training scripts put it, and under which names.

use super::pickle::{Id, Pickle, Value};
use super::tensor::{Archive, Found};

/// Keys under which checkpoints hold the state dict, the likeliest first.
const WRAPPERS: [&str; 5] = ["network_weights", "state_dict", "model_state_dict", "model", "net"];

/// Most wrappers within each other.
const MOST_WRAPPERS: usize = 3;

/// Deepest modules within modules.
const DEEPEST: usize = 48;

/// Most bytes of all names together.
const MOST_NAMES: usize = 64 << 20;

/// Most values that are looked at.
const MOST_VISITS: usize = 4 << 20;

/// A state dict.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The keys that lead to it.
    pub wrapper: Vec<String>,
    /// Its tensors in their order.
    pub tensors: Vec<(String, Found)>,
}

/// What finds tensors, and gives up where the file leads in circles.
struct Search<'a> {
    pickle: &'a Pickle<'a>,
    archive: &'a Archive<'a>,
    tensors: Vec<(String, Found)>,
    names: usize,
    visits: usize,
}

/// The state dict that a pickle holds, or what lies under one key of it.
///
/// # Errors
/// When there is none, naming the keys there are, when there are two of the same size, or when one
/// of its tensors is damaged.
pub(super) fn find(pickle: &Pickle<'_>, archive: &Archive<'_>, under: Option<(&str, Id)>) -> Result<State, String> {
    let mut search = Search { pickle, archive, tensors: Vec::new(), names: 0, visits: 0 };
    let mut wrapper: Vec<String> = under.iter().map(|(key, _)| (*key).to_owned()).collect();
    if !search.unwrap(under.map_or(pickle.root, |(_, id)| id), &mut wrapper)? {
        return Err(nothing(pickle));
    }
    let tensors = std::mem::take(&mut search.tensors);
    if let (None, Some(first), Value::Dict(items)) = (under, wrapper.first(), pickle.value(pickle.root)) {
        let others = items.iter().filter_map(|&(key, value)| Some((pickle.text(key)?, value)));
        for (key, value) in others.filter(|(key, _)| key != first) {
            search.tensors.clear();
            // what is damaged beside the network is no network
            if search.unwrap(value, &mut Vec::new()).is_err() {
                break;
            }
            // averages of the network, or a teacher: as many tensors, but for some counts
            let many = search.tensors.len();
            if many > 1 && many * 10 >= tensors.len() * 9 {
                return Err(format!("the checkpoint holds networks under {first} and under {key:.40}; say which, as --weights {first}"));
            }
        }
    }
    Ok(State { wrapper, tensors })
}

fn nothing(pickle: &Pickle<'_>) -> String {
    let place = "the checkpoint";
    let known = WRAPPERS.join(", ");
    match pickle.value(pickle.root) {
        Value::Dict(items) => {
            let keys: Vec<String> = items.iter().take(8).map(|(k, _)| format!("{:.40?}", pickle.text(*k).unwrap_or("?"))).collect();
            let more = if items.len() > keys.len() { ", .." } else { "" };
            format!("{place} holds no tensors and none of {known}, but {} keys: {}{more}", items.len(), keys.join(", "))
        }
        Value::Object { callee, .. } => {
            let (module, name) = pickle.global(*callee).unwrap_or(("?", "?"));
            format!("{place} is a {module:.60}.{name:.60} without tensors; save its state dict: torch.save(model.state_dict(), ..)")
        }
        _ => format!("{place} is no dict of tensors"),
    }
}

impl Search<'_> {
    /// Whether there are tensors in what lies under one of the known keys, or else in the value itself: a checkpoint may hold a
    /// tensor of its own beside its state dict.
    fn unwrap(&mut self, id: Id, wrapper: &mut Vec<String>) -> Result<bool, String> {
        let inner = WRAPPERS.map(|key| self.pickle.get(id, key).filter(|_| wrapper.len() < MOST_WRAPPERS));
        for (key, inner) in WRAPPERS.iter().zip(inner) {
            if let Some(inner) = inner {
                wrapper.push((*key).to_owned());
                if self.unwrap(inner, wrapper)? {
                    return Ok(true);
                }
                wrapper.pop();
            }
        }
        self.module(id, "", 0)?;
        Ok(!self.tensors.is_empty())
    }

    /// The tensors of a dict, or of an object's attributes: a module was pickled as a whole, or a TorchScript archive.
    fn module(&mut self, id: Id, prefix: &str, depth: usize) -> Result<(), String> {
        let pickle = self.pickle;
        // the keys of a state are looked through, which a file may ask for again and again
        let keys = match pickle.value(id) {
            Value::Object { state: Some(state), .. } => pickle.len(*state),
            _ => 0,
        };
        self.visits += 1 + keys;
        if depth > DEEPEST || self.visits > MOST_VISITS {
            return Err(format!("the checkpoint's modules are nested more than {DEEPEST} deep, or lead in circles"));
        }
        match pickle.value(id) {
            Value::Dict(items) => items.iter().try_for_each(|&(key, value)| self.item(key, value, prefix, depth, false)),
            Value::Object { state: Some(state), .. } => {
                match ["_parameters", "_buffers", "_modules"].map(|part| pickle.get(*state, part)) {
                    [None, None, None] => match pickle.value(*state) {
                        Value::Dict(items) => items.iter().try_for_each(|&(key, value)| self.item(key, value, prefix, depth, true)),
                        _ => Ok(()),
                    },
                    parts => parts.into_iter().flatten().try_for_each(|part| match pickle.value(part) {
                        Value::Dict(items) => items.iter().try_for_each(|&(key, value)| self.item(key, value, prefix, depth, true)),
                        _ => Ok(()),
                    }),
                }
            }
            _ => Ok(()),
        }
    }

    fn item(&mut self, key: Id, value: Id, prefix: &str, depth: usize, modules: bool) -> Result<(), String> {
        self.visits += 1;
        if self.visits > MOST_VISITS {
            return Err("the checkpoint's modules lead in circles".into());
        }
        let Some(key) = self.pickle.text(key) else { return Ok(()) };
        if !matches!(self.pickle.value(value), Value::Object { .. }) {
            return Ok(());
        }
        self.names += prefix.len() + key.len();
        if self.names > MOST_NAMES {
            return Err("the names of the checkpoint's tensors are too long".into());
        }
        let name = format!("{prefix}{key}");
        match self.archive.tensor(self.pickle, value).map_err(|e| format!("the tensor {name:.120} is damaged: {e}"))? {
            Some(found) => self.tensors.push((name, found)),
            None if modules => self.module(value, &format!("{name}."), depth + 1)?,
            None => {}
        }
        Ok(())
    }
}

/// Names without what wrappers of modules put before and into them, and what all of them began with.
pub(super) fn plain(names: &mut [String]) -> String {
    let mut stripped = String::new();
    while let Some(prefix) = ["module.", "_orig_mod."].into_iter().find(|p| !names.is_empty() && names.iter().all(|n| n.starts_with(p))) {
        names.iter_mut().for_each(|name| drop(name.drain(..prefix.len())));
        stripped.push_str(prefix);
    }
    names.iter_mut().filter(|name| name.contains("._orig_mod.")).for_each(|name| *name = name.replace("._orig_mod.", "."));
    stripped
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn what_wraps_modules_is_taken_from_names() {
        let mut names = ["module._orig_mod.a.weight", "module._orig_mod.b._orig_mod.c.bias"].map(str::to_owned);
        assert_eq!(plain(&mut names), "module._orig_mod.");
        assert_eq!(names, ["a.weight", "b.c.bias"]);
        let mut names = ["module.a", "b"].map(str::to_owned);
        assert_eq!(plain(&mut names), "");
        assert_eq!(plain(&mut []), "");
    }
}
