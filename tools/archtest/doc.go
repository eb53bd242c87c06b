// Package archtest holds the rules of the house, and its test applies them to this
// repository:
//
//   - a folder imports only those before it: blockdev, dedupe, replicate, appliance;
//     nobody imports tools, and the contract packages import nothing of ours;
//   - appliance/daemon is the only place that wires, and only cmd imports it;
//   - each third-party library is imported by one package of ours;
//   - every folder has one package comment, every exported name a doc comment;
//   - the top level of the tree is what it is, and nothing in the tree refers to a
//     path outside of it;
//   - the README's first command stands by its line 20.
//
// A rule is a function from a parsed [Tree] to violations. Each is shown in the
// test to fail on a small tree that breaks it.
package archtest
