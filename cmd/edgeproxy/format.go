package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"edgeproxy/config"
)

const stdinName = "-"

type formatOptions struct {
	write bool // back into the file
	check bool // only say which files would change
}

func newFmtCommand() *cobra.Command {
	var o formatOptions
	cmd := &cobra.Command{
		Use:   "fmt [-w | --check] [FILE|DIR]...",
		Short: "Lay out HCL files in the canonical way",
		Long: `Lay out HCL files in the canonical way, and print the result. A folder stands
for its *.hcl and *.hcl.json files. Without a file, or for '-', standard input is read.

A file with a syntax error is left as it is, and the command ends with 1.`,
		Example: `  edgeproxy fmt -w /etc/edgeproxy
  edgeproxy fmt --check edge.hcl || echo "run edgeproxy fmt -w"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.write && o.check {
				return usagef(cmd, "-w and --check exclude each other: one writes, the other only looks")
			}
			if len(args) == 0 {
				args = []string{stdinName}
			}
			return formatAll(cmd, args, o)
		},
	}
	cmd.Flags().BoolVarP(&o.write, "write", "w", false, "write the result back to the file instead of printing it")
	cmd.Flags().BoolVar(&o.check, "check", false, "print the names of files that are not in canonical layout; end with 1 if there are any")
	return cmd
}

// formatAll goes on after a file that fails, so that one run tells all.
func formatAll(cmd *cobra.Command, args []string, o formatOptions) error {
	var failed bool
	for _, arg := range args {
		names, err := hclFiles(arg)
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "edgeproxy fmt: %v\n", err)
			failed = true
		}
		for _, name := range names {
			if err := formatOne(cmd, name, o); err != nil {
				if !errors.Is(err, errReported) {
					fmt.Fprintf(cmd.ErrOrStderr(), "edgeproxy fmt: %v\n", err)
				}
				failed = true
			}
		}
	}
	if failed {
		return errReported
	}
	return nil
}

// hclFiles returns the files that an argument stands for.
func hclFiles(arg string) ([]string, error) {
	if arg == stdinName {
		return []string{arg}, nil
	}
	st, err := os.Stat(arg)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return []string{arg}, nil
	}
	entries, err := os.ReadDir(arg)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || name[0] == '.' { // as config.Load sees it
			continue
		}
		if strings.HasSuffix(name, ".hcl") || strings.HasSuffix(name, ".hcl.json") {
			names = append(names, filepath.Join(arg, name))
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s holds no *.hcl or *.hcl.json file", arg)
	}
	return names, nil
}

func formatOne(cmd *cobra.Command, name string, o formatOptions) error {
	if name == stdinName && o.write {
		return errors.New("standard input cannot be written back to; leave -w out")
	}
	src, err := readFileOrStdin(cmd, name)
	if err != nil {
		return err
	}
	shown := name
	if name == stdinName {
		shown = "<stdin>"
	}
	out, diags := config.Format(src, shown)
	if diags.HasErrors() {
		return printDiagnostics(cmd, diags)
	}
	switch changed := !bytes.Equal(src, out); {
	case o.check && changed:
		fmt.Fprintln(cmd.OutOrStdout(), shown)
		return errReported
	case o.write && changed:
		return replaceFile(name, out)
	case o.check, o.write:
		return nil
	}
	_, err = cmd.OutOrStdout().Write(out)
	return err
}

func readFileOrStdin(cmd *cobra.Command, name string) ([]byte, error) {
	if name == stdinName {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(name)
}

// replaceFile puts content where name is in one step, so that a daemon that
// reloads at this moment sees the old file or the new one, never half of it.
// A symbolic link stays one; mode and, where permitted, owner are kept.
func replaceFile(name string, content []byte) (err error) {
	target, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	st, err := os.Stat(target)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(content); err != nil {
		return err
	}
	if err = tmp.Chmod(st.Mode().Perm()); err != nil {
		return err
	}
	if err = keepOwner(tmp, st); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), target)
}

// keepOwner matters to root, who may format the file of another user; for
// anyone else the owner already is who it can be.
func keepOwner(tmp *os.File, st fs.FileInfo) error {
	if os.Geteuid() != 0 {
		return nil
	}
	owner := st.Sys().(*syscall.Stat_t) // what os.Stat returns on Linux
	return tmp.Chown(int(owner.Uid), int(owner.Gid))
}
