package main

import (
	"fmt"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// noArgs is cobra.NoArgs with the message and the exit code of wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef(cmd, "%s takes no argument, but was given %q%s", cmd.CommandPath(), args[0], hintFile(cmd))
}

// hintFile helps who wrote `check edge.hcl` for `check -c edge.hcl`.
func hintFile(cmd *cobra.Command) string {
	if cmd.Flags().Lookup("config") == nil {
		return ""
	}
	return "; the configuration is named with -c"
}

func unknownCommand(root *cobra.Command, name string) error {
	names := commandNames(root)
	if near := nearest(name, names); near != "" {
		return usagef(root, "there is no command %q; did you mean %q?", name, near)
	}
	return usagef(root, "there is no command %q; the commands are %s", name, quotedList(names))
}

// flagError turns pflag's errors into usage errors, with the nearest spelling
// where a flag is unknown.
func flagError(cmd *cobra.Command, err error) error {
	name, unknown := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !unknown {
		return usageError{err, cmd}
	}
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, f.Name)
		}
	})
	if near := nearest(name, flags); near != "" {
		return usagef(cmd, "there is no flag --%s; did you mean --%s?", name, near)
	}
	return usagef(cmd, "there is no flag --%s", name)
}

// nearest returns the candidate that name is most likely a misspelling of, or "".
func nearest(name string, candidates []string) string {
	best, distance := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if d := levenshtein.Distance(strings.ToLower(name), c, nil); d < distance {
			best, distance = c, d
		}
	}
	if distance >= len(name) { // nothing of what was written is left
		return ""
	}
	return best
}

func commandNames(root *cobra.Command) []string {
	var names []string
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

func quotedList(names []string) string {
	var b strings.Builder
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", n)
	}
	return b.String()
}
