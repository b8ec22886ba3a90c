#!/usr/bin/env bash
# `make install`, `make uninstall` and `make static`, in a copy of the sources: what is installed works from its own place, also after it was moved; the static
# programs run on a root file system that holds nothing but them and the models. A tool or right that is missing is a line "skipped: ...".
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0 skipped=0
check() { # check MESSAGE COMMAND...
    local message=$1
    shift
    if "$@" >/dev/null 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "failed: $message"; fi
}
skip() { skipped=$((skipped + 1)); echo "skipped: $*"; }
is() { [ "$1" = "$2" ]; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp ./*.c ./*.h Makefile "$work"
ln -s "$PWD/models" "$work/models"
text="The committee met on 3 March 2021. It did not approve the budget of 1,250,000 dollars, because two members were absent."
cd "$work" || exit 1
compressed() { (cd / && echo "$text" | "$@" compress --compat --rate 0.5 -); }

check "make" make -s OPT=-O1
expected=$(compressed "$work/lingua2")
check "a text is compressed in the source tree" test -n "$expected"

check "make install" make -s OPT=-O1 install DESTDIR="$work/package" PREFIX=/opt/tools
for file in bin/lingua2 bin/mend share/man/man1/lingua2.1 share/man/man1/mend.1 share/lingua2/models/default.safetensors share/lingua2/models/cl100k_base.safetensors \
    share/lingua2/models/cl100k_base.LICENSE share/bash-completion/completions/lingua2 share/bash-completion/completions/mend share/zsh/site-functions/_lingua2 \
    share/zsh/site-functions/_mend share/fish/vendor_completions.d/lingua2.fish share/fish/vendor_completions.d/mend.fish; do
    check "$file is installed" test -s "package/opt/tools/$file"
done
rm models
check "the installed program finds its models" is "$(compressed "$work/package/opt/tools/bin/lingua2")" "$expected"
mv package/opt/tools moved
check "and after the prefix was moved" is "$(compressed "$work/moved/bin/lingua2")" "$expected"
check "and through a symbolic link" is "$(ln -s "$work/moved/bin/lingua2" linked && compressed "$work/linked")" "$expected"
mv moved package/opt/tools
check "make uninstall" make -s OPT=-O1 uninstall DESTDIR="$work/package" PREFIX=/opt/tools
check "nothing is left" is "$(find package -type f)" ""

if ! command -v musl-gcc >/dev/null; then
    skip "musl-gcc is not installed: no static build"
else
    check "make static" make -s OPT=-O1 CFLAGS=-Werror static
    mkdir root
    cp lingua2 mend root
    cp -L "$OLDPWD/models" root -r
    if [ "$(id -u)" = 0 ] && chroot root /mend info /models/mend-lm.safetensors >info 2>&1; then
        check "mend info on an empty root file system" grep -q parameters info
        check "lingua2 compress on an empty root file system" is "$(echo "$text" | chroot root /lingua2 compress --compat --rate 0.5 -)" "$expected"
        check "lingua2 help --man there" is "$(chroot root /lingua2 help --man | sha256sum)" "$(./lingua2 help --man | sha256sum)"
    elif [ "$(id -u)" = 0 ]; then
        check "mend runs on an empty root file system: $(head -c 300 info)" false
    else
        skip "only root may chroot"
    fi
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
